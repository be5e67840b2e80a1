package nvidia

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// Limits of an XML document. NVIDIA's manifests have about 80 elements, six deep.
const (
	maxElements = 4096
	maxDepth    = 16
	maxScope    = 32 // namespaces
)

// forbidden is what no manifest of NVIDIA's has. Without it, characters stand
// for themselves, and a document has one reading.
var forbidden = []struct{ bytes, name string }{
	{"&", "an entity"},
	{"<!", "a document type, comment or CDATA section"},
	{"<?", "a processing instruction or XML declaration"},
	{"\r", "a carriage return"},
}

// qname is the name of an element or attribute. Canonical form keeps the prefix,
// which is no part of what it means.
type qname struct{ prefix, local, space string }

func (n qname) tag() string {
	if n.prefix == "" {
		return n.local
	}
	return n.prefix + ":" + n.local
}

// String is the name without regard to its prefix.
func (n qname) String() string {
	if n.space == "" {
		return n.local
	}
	return "{" + n.space + "}" + n.local
}

type attribute struct {
	qname
	value string
}

type element struct {
	qname
	attrs    []attribute       // in canonical order; namespaces are not among them
	scope    map[string]string // namespaces by prefix; shared with the parent where they are the same
	children []node
}

// node is a piece of text or, where it is not nil, an element.
type node struct {
	text string
	elem *element
}

// parseXML reads a document, strictly: of XML 1.0 with namespaces only what manifests need.
func parseXML(b []byte) (*element, error) {
	if len(b) > maxRIM {
		return nil, fmt.Errorf("%d bytes, want at most %d", len(b), maxRIM)
	}
	for _, f := range forbidden {
		if bytes.Contains(b, []byte(f.bytes)) {
			return nil, fmt.Errorf("has %s", f.name)
		}
	}
	if !utf8.Valid(b) {
		return nil, errors.New("is not UTF-8")
	}
	dec := xml.NewDecoder(bytes.NewReader(b))
	var root *element
	var open []*element
	for n := 0; ; {
		// Token would drop the prefixes. RawToken keeps them, and leaves it to us to match start and end.
		tok, err := dec.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		switch t := tok.(type) {
		case xml.StartElement:
			if n++; n > maxElements || len(open) == maxDepth {
				return nil, fmt.Errorf("more than %d elements, or deeper than %d", maxElements, maxDepth)
			}
			if root == nil {
				if root, err = newElement(t, nil); err != nil {
					return nil, err
				}
				open = append(open, root)
				continue
			}
			if len(open) == 0 {
				return nil, errors.New("a second root element")
			}
			parent := open[len(open)-1]
			e, err := newElement(t, parent.scope)
			if err != nil {
				return nil, err
			}
			parent.children = append(parent.children, node{elem: e})
			open = append(open, e)
		case xml.EndElement:
			if len(open) == 0 {
				return nil, fmt.Errorf("end of %.64q, which has no start", t.Name.Local)
			}
			e := open[len(open)-1]
			if e.prefix != t.Name.Space || e.local != t.Name.Local {
				return nil, fmt.Errorf("end of %.64q within %.64q", t.Name.Local, e.local)
			}
			open = open[:len(open)-1]
		case xml.CharData:
			if len(open) > 0 {
				e := open[len(open)-1]
				e.children = append(e.children, node{text: string(t)})
			} else if !blank(string(t)) {
				return nil, errors.New("text outside of the root element")
			}
		default: // see forbidden
			return nil, fmt.Errorf("has a %T", t)
		}
	}
	if root == nil || len(open) > 0 {
		return nil, errors.New("ends before its root element does")
	}
	return root, nil
}

func blank(s string) bool { return strings.Trim(s, " \t\n") == "" }

// newElement resolves the prefixes of a start tag in the scope of its parent.
func newElement(t xml.StartElement, outer map[string]string) (*element, error) {
	e := &element{scope: outer}
	own := map[string]string{}
	for _, a := range t.Attr {
		// A parser makes spaces of them; encoding/xml does not.
		if strings.ContainsAny(a.Value, "\t\n") {
			return nil, fmt.Errorf("a line break or tab in attribute %.64q", a.Name.Local)
		}
		var prefix string
		switch {
		case a.Name.Space == "xmlns":
			prefix = a.Name.Local
		case a.Name != xml.Name{Local: "xmlns"}:
			continue
		}
		if _, ok := own[prefix]; ok {
			return nil, fmt.Errorf("prefix %.64q is declared twice", prefix)
		}
		// Canonical XML has no answer for relative addresses; those of W3C cannot be declared anew.
		web := strings.HasPrefix(a.Value, "http://") || strings.HasPrefix(a.Value, "https://")
		if reserved := a.Value == "http://www.w3.org/XML/1998/namespace" || a.Value == "http://www.w3.org/2000/xmlns/"; !web && (prefix != "" || a.Value != "") || reserved {
			return nil, fmt.Errorf("prefix %.64q stands for %.64q", prefix, a.Value)
		}
		own[prefix] = a.Value
	}
	if len(own) > 0 {
		e.scope = maps.Clone(outer)
		if e.scope == nil {
			e.scope = map[string]string{}
		}
		maps.Copy(e.scope, own)
		if len(e.scope) > maxScope {
			return nil, fmt.Errorf("more than %d namespaces", maxScope)
		}
	}
	var err error
	if e.qname, err = e.resolve(t.Name, e.scope[""]); err != nil {
		return nil, err
	}
	for _, a := range t.Attr {
		if a.Name.Space == "xmlns" || a.Name == (xml.Name{Local: "xmlns"}) {
			continue
		}
		n, err := e.resolve(a.Name, "")
		if err != nil {
			return nil, err
		}
		e.attrs = append(e.attrs, attribute{n, a.Value})
	}
	slices.SortFunc(e.attrs, func(a, b attribute) int {
		return cmp.Or(strings.Compare(a.space, b.space), strings.Compare(a.local, b.local))
	})
	for i := range e.attrs[min(1, len(e.attrs)):] {
		if a, b := e.attrs[i], e.attrs[i+1]; a.space == b.space && a.local == b.local {
			return nil, fmt.Errorf("attribute %.64q twice", a.local)
		}
	}
	return e, nil
}

// resolve finds the namespace of a name. Attributes of the xml prefix, which descendants inherit, are refused with it.
func (e *element) resolve(n xml.Name, none string) (qname, error) {
	if strings.Contains(n.Local, ":") {
		return qname{}, fmt.Errorf("name %.64q", n.Local)
	}
	if n.Space == "" {
		return qname{"", n.Local, none}, nil
	}
	space, ok := e.scope[n.Space]
	if !ok || n.Space == "xml" || n.Space == "xmlns" {
		return qname{}, fmt.Errorf("prefix %.64q of %.64q stands for nothing", n.Space, n.Local)
	}
	return qname{n.Space, n.Local, space}, nil
}

// Canonical XML, section 2.3. Most of it cannot occur here, see forbidden.
var (
	escapeText  = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "\r", "&#xD;")
	escapeValue = strings.NewReplacer("&", "&amp;", "<", "&lt;", `"`, "&quot;", "\t", "&#x9;", "\n", "&#xA;", "\r", "&#xD;")
)

// canonical is the element in Canonical XML 1.1, without one of those below it.
// Version 1.0 would be the same: they differ in the attributes of the xml prefix.
func (e *element) canonical(without *element) []byte {
	var b bytes.Buffer
	e.write(&b, nil, without)
	return b.Bytes()
}

// write writes the namespaces that are not those of outer, the parent's.
func (e *element) write(b *bytes.Buffer, outer map[string]string, without *element) {
	b.WriteString("<" + e.tag())
	for _, prefix := range slices.Sorted(maps.Keys(e.scope)) {
		space := e.scope[prefix]
		if outer[prefix] == space {
			continue
		}
		if b.WriteString(" xmlns"); prefix != "" {
			b.WriteString(":" + prefix)
		}
		b.WriteString(`="` + escapeValue.Replace(space) + `"`)
	}
	for _, a := range e.attrs {
		b.WriteString(" " + a.tag() + `="` + escapeValue.Replace(a.value) + `"`)
	}
	b.WriteByte('>')
	for _, c := range e.children {
		if c.elem == nil {
			b.WriteString(escapeText.Replace(c.text))
		} else if c.elem != without {
			c.elem.write(b, e.scope, without)
		}
	}
	b.WriteString("</" + e.tag() + ">")
}
