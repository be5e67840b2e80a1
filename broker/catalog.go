package broker

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// CatalogEntry maps resource paths to a secret and the policy that guards it.
type CatalogEntry struct {
	// Pattern is a path whose whole segments may be variables: "disks/{vm}".
	Pattern string `json:"pattern"`
	// Source names the secret source: "local", "token", or a Vault source of the configuration.
	Source string `json:"source"`
	// Kind is what to get from the source. Empty means KindKV.
	Kind Kind `json:"kind,omitempty"`
	// Mount is the path of the engine in Vault; empty means the usual one of the kind ("secret", "database", "pki", "transit").
	Mount string `json:"mount,omitempty"`
	// Key is the secret's path in the source, or the name of its role or key there; {variables} of the pattern are filled in.
	Key string `json:"key"`
	// Field is the field of a Vault KV secret; empty means "value", "*" the whole secret as JSON.
	Field string `json:"field,omitempty"`
	// PinVersion, if not zero, is the only version of a KV secret that is given out.
	PinVersion int `json:"pin_version,omitempty"`
	// Options are the kind's own settings; {variables} are filled in. Validate knows their names.
	Options map[string]string `json:"options,omitempty"`
	inNames []inName          // of an entry looked up
	// Policy is the package under claviger.release that decides.
	Policy string `json:"policy"`
	// CreateBytes, if not zero, makes a random secret of that length where none exists.
	CreateBytes int           `json:"create_bytes,omitempty"`
	TTL         time.Duration `json:"ttl,omitempty"` // default lifetime of the wrapped secret
	// Grace is how long the version before the newest may still be used after a rotation.
	Grace time.Duration `json:"grace,omitempty"`
	// Rotatable lets an operator have the source make a new random value. A disk
	// key is not: its disk would not open any more.
	Rotatable bool `json:"rotatable,omitempty"`
	// Rekey lets the workload name the version that it wants, and have the next
	// one made (VersionInput): for disk keys, as a disk opens with one version until it was re-keyed.
	Rekey bool `json:"rekey,omitempty"`
	// Priority is PriorityBoot for what machines cannot boot without: it goes before everything else in the queue.
	Priority string            `json:"priority,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
}

// PriorityBoot is the priority of disk keys.
const PriorityBoot = "boot"

// Kind is a kind of secret.
type Kind string

// Kinds. All but KindEAR are of Vault; "local" has KindKV only.
const (
	KindKV             Kind = "kv"              // Key: path of a KV v2 secret
	KindDatabase       Kind = "database"        // Key: a dynamic role; leased. JSON {"username", "password"}
	KindDatabaseStatic Kind = "database_static" // Key: a static role. JSON {"username", "password"}
	KindPKI            Kind = "pki"             // Key: a role; Input: the guest's CSR. PEM chain. Options: common_name, uri_sans, dns_sans, ttl
	KindTransitDecrypt Kind = "transit_decrypt" // Key: a transit key; Input: the ciphertext
	KindTransitDatakey Kind = "transit_datakey" // Key: a transit key. JSON {"plaintext" (base64), "ciphertext"}. Options: bits
	KindTransitExport  Kind = "transit_export"  // Key: an exportable transit key, wrapped inside Vault to the guest's RSA key: the broker never sees it
	KindWrapped        Kind = "wrapped"         // Key: path of a KV v2 secret; a response-wrapping token for it. Options: wrap_ttl
	KindLogin          Kind = "login"           // Key: a token role; leased. JSON {"token", "accessor", "ttl"}
	KindEAR            Kind = "ear"             // source "token"; Key: the audience. An EAT attestation result. Options: dialect
)

// Base64 says whether the field holds base64, after the prefix that keys made by a broker have or without it.
func (e CatalogEntry) Base64() bool { return e.CreateBytes > 0 || e.Options["encoding"] == "base64" }

// Leased says whether secrets of this kind belong to an Owner.
func (k Kind) Leased() bool { return k == KindDatabase || k == KindLogin }

// Watched says whether a new version can appear that running guests should get.
func (k Kind) Watched() bool { return k == "" || k == KindKV || k == KindDatabaseStatic }

// options are the settings that each kind knows.
var options = map[Kind][]string{
	KindKV: {"encoding"}, KindDatabase: nil, KindDatabaseStatic: nil,
	KindPKI:            {"common_name", "uri_sans", "dns_sans", "ttl"},
	KindTransitDecrypt: {"context"}, KindTransitDatakey: {"bits"}, KindTransitExport: nil,
	KindWrapped: {"wrap_ttl"}, KindLogin: nil, KindEAR: {"dialect"},
}

var (
	pathSegment  = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
	pathVariable = regexp.MustCompile(`^\{[a-z][a-z0-9_]*\}$`)
	anyVariable  = regexp.MustCompile(`\{[^}]*\}`)
	policyName   = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
)

// Validate names the field that is wrong.
func (e CatalogEntry) Validate() error {
	vars := map[string]bool{}
	for s := range strings.SplitSeq(e.Pattern, "/") {
		if pathVariable.MatchString(s) {
			if vars[s] {
				return fmt.Errorf("pattern: variable %s appears twice", s)
			}
			vars[s] = true
		} else if !validSegment(s) {
			return fmt.Errorf("pattern: segment %q is neither [A-Za-z0-9._-]+ nor a {variable}", s)
		}
	}
	for s := range strings.SplitSeq(e.Key, "/") {
		if strings.Contains(s, "{") {
			if !vars[s] {
				return fmt.Errorf("key: segment %q is not a variable of the pattern", s)
			}
		} else if !validSegment(s) {
			return fmt.Errorf("key: segment %q is neither [A-Za-z0-9._-]+ nor a {variable}", s)
		}
	}
	kind := cmp.Or(e.Kind, KindKV)
	known, ok := options[kind]
	if !ok {
		return fmt.Errorf("kind: %q is not known", e.Kind)
	}
	for name, value := range e.Options {
		if !slices.Contains(known, name) {
			return fmt.Errorf("options: kind %s has no option %q", kind, name)
		}
		for _, v := range anyVariable.FindAllString(value, -1) {
			if !vars[v] {
				return fmt.Errorf("options: %s: %s is not a variable of the pattern", name, v)
			}
		}
		if a, b, bad := runTogether(kind, name, value); bad {
			return fmt.Errorf("options: %s: %s and %s run together: resources that differ could come to the same; put a / or, in a DNS name, a dot between them", name, a, b)
		}
	}
	if v, ok := e.Options["encoding"]; ok && (v != "base64" || e.Field == "*" || e.Source == "local") {
		return fmt.Errorf("options: encoding: %q: want base64, for one field of a source that holds text", v)
	}
	for s := range strings.SplitSeq(e.Mount, "/") {
		if e.Mount != "" && !validSegment(s) {
			return fmt.Errorf("mount: segment %q is not [A-Za-z0-9._-]+", s)
		}
	}
	switch {
	case e.Source == "":
		return fmt.Errorf("source: missing")
	case e.Source == "local" && kind != KindKV:
		return fmt.Errorf("kind: the embedded store has no %s", kind)
	case (e.Source == "token") != (kind == KindEAR):
		return fmt.Errorf("kind: ear goes with source token, and only with it")
	case kind != KindKV && (e.CreateBytes != 0 || e.Field != "" || e.PinVersion != 0):
		return fmt.Errorf("create_bytes, field, pin_version: kind %s has none", kind)
	case e.PinVersion < 0 || e.PinVersion > 0 && e.CreateBytes > 0:
		return fmt.Errorf("pin_version: want a version that exists, without create_bytes")
	case e.Rotatable && kind != KindDatabaseStatic && (kind != KindKV || e.CreateBytes == 0):
		return fmt.Errorf("rotatable: only for kv with create_bytes, and database_static")
	case e.Rekey && e.Rotatable:
		return fmt.Errorf("rekey, rotatable: not both: a rotation by an operator would replace the version that the disk opens with")
	case e.Rekey && (kind != KindKV || e.CreateBytes == 0 || e.Field == "*"):
		return fmt.Errorf("rekey: only for kv with create_bytes, and one field")
	case e.Priority != "" && e.Priority != PriorityBoot:
		return fmt.Errorf("priority: %q is neither boot nor empty", e.Priority)
	case e.Grace < 0:
		return fmt.Errorf("grace: negative")
	case !policyName.MatchString(e.Policy):
		return fmt.Errorf("policy: %q is not a package name under claviger.release", e.Policy)
	case e.CreateBytes < 0 || e.CreateBytes > 1024:
		return fmt.Errorf("create_bytes: %d is outside 0 to 1024", e.CreateBytes)
	case e.CreateBytes > 0 && e.CreateBytes < 16:
		return fmt.Errorf("create_bytes: %d is too short for a key, want 16 to 1024", e.CreateBytes)
	case e.TTL < 0:
		return fmt.Errorf("ttl: negative")
	}
	return nil
}

// A path element of "." or ".." must never reach a source.
func validSegment(s string) bool { return pathSegment.MatchString(s) && s != "." && s != ".." }

// Catalog finds the entry for a path. It is immutable; the zero value knows nothing.
type Catalog struct {
	entries []CatalogEntry // by structure, see comparePatterns
	shapes  []shape        // by number of segments, then fewest variables first
	blocked [][]string     // patterns of entries that cannot be used: PlanCatalog
}

// shape is the patterns with variables at the same positions. A path matches at most one of them.
type shape struct {
	variable []bool // by segment
	entries  map[string]CatalogEntry
}

// NewCatalog checks the entries. Where two patterns match one path, the one that matches
// fewer paths wins, whatever the order and the variables' names. Patterns of which neither
// is the narrower one ("{a}/prod" and "eu/{b}") are refused: no rule that an
// operator would guess decides between them.
func NewCatalog(entries []CatalogEntry) (*Catalog, error) {
	c := &Catalog{entries: slices.Clone(entries)}
	slices.SortStableFunc(c.entries, func(a, b CatalogEntry) int { return comparePatterns(a.Pattern, b.Pattern) })
	byShape := map[string]int{}
	for _, e := range c.entries {
		if err := e.Validate(); err != nil {
			return nil, fmt.Errorf("catalog entry %q: %w", e.Pattern, err)
		}
		segs := strings.Split(e.Pattern, "/")
		v := variables(segs)
		name := fmt.Sprint(v)
		i, ok := byShape[name]
		if !ok {
			i = len(c.shapes)
			byShape[name] = i
			c.shapes = append(c.shapes, shape{v, map[string]CatalogEntry{}})
		}
		key := fixed(segs, v)
		if other, dup := c.shapes[i].entries[key]; dup {
			return nil, fmt.Errorf("catalog entry %q: matches the same paths as %q", e.Pattern, other.Pattern)
		}
		c.shapes[i].entries[key] = e
	}
	slices.SortFunc(c.shapes, func(a, b shape) int {
		return cmp.Or(len(a.variable)-len(b.variable), a.variables()-b.variables(), strings.Compare(fmt.Sprint(a.variable), fmt.Sprint(b.variable)))
	})
	for i, a := range c.shapes {
		for _, b := range c.shapes[:i] {
			if p, q, ok := ambiguous(a, b); ok {
				return nil, fmt.Errorf("catalog entry %q: ambiguous with %q: a path can match both, and neither pattern is the narrower one", p, q)
			}
		}
	}
	return c, nil
}

// comparePatterns orders segment by segment; a fixed segment comes before a variable. Variables' names do not count.
func comparePatterns(a, b string) int {
	return slices.CompareFunc(strings.Split(a, "/"), strings.Split(b, "/"), func(x, y string) int {
		switch vx, vy := isVariable(x), isVariable(y); {
		case vx && vy:
			return 0
		case vx:
			return 1
		case vy:
			return -1
		}
		return strings.Compare(x, y)
	})
}

func isVariable(segment string) bool { return strings.HasPrefix(segment, "{") }

func variables(segs []string) []bool {
	v := make([]bool, len(segs))
	for i, s := range segs {
		v[i] = isVariable(s)
	}
	return v
}

func (s shape) variables() int {
	n := 0
	for _, v := range s.variable {
		if v {
			n++
		}
	}
	return n
}

// fixed is the segments where variable is false. No segment has a slash.
func fixed(segs []string, variable []bool) string {
	var b strings.Builder
	for i, s := range segs {
		if !variable[i] {
			b.WriteString(s)
			b.WriteByte('/')
		}
	}
	return b.String()
}

// ambiguous finds a pattern of each shape that match one path, where neither shape is narrower.
func ambiguous(a, b shape) (string, string, bool) {
	if len(a.variable) != len(b.variable) {
		return "", "", false
	}
	either := make([]bool, len(a.variable))
	aOnly, bOnly := false, false
	for i, v := range a.variable {
		either[i] = v || b.variable[i]
		aOnly = aOnly || v && !b.variable[i]
		bOnly = bOnly || !v && b.variable[i]
	}
	if !aOnly || !bOnly { // one of them is narrower
		return "", "", false
	}
	// Two patterns match one path where they agree on what is fixed in both.
	common := map[string]string{}
	for _, e := range b.entries {
		k := fixed(strings.Split(e.Pattern, "/"), either)
		if p, ok := common[k]; !ok || e.Pattern < p { // the same message each time
			common[k] = e.Pattern
		}
	}
	p := ""
	for _, e := range a.entries {
		if _, ok := common[fixed(strings.Split(e.Pattern, "/"), either)]; ok && (p == "" || e.Pattern < p) {
			p = e.Pattern
		}
	}
	if p == "" {
		return "", "", false
	}
	return p, common[fixed(strings.Split(p, "/"), either)], true
}

// Entries lists the catalog.
func (c *Catalog) Entries() []CatalogEntry {
	if c == nil {
		return nil
	}
	return slices.Clone(c.entries)
}

// Lookup returns the entry with its key filled in, and the variables' values.
func (c *Catalog) Lookup(path string) (CatalogEntry, map[string]string, bool) {
	if c == nil {
		return CatalogEntry{}, nil, false
	}
	segs := strings.Split(path, "/")
	for _, s := range segs {
		if !validSegment(s) {
			return CatalogEntry{}, nil, false
		}
	}
	if c.isBlocked(segs) {
		return CatalogEntry{}, nil, false
	}
	for _, s := range c.shapes {
		if len(s.variable) != len(segs) {
			continue
		}
		if e, ok := s.entries[fixed(segs, s.variable)]; ok {
			params := parameters(strings.Split(e.Pattern, "/"), segs)
			e.inNames = namesIn(e)
			e.Key = fill(e.Key, params)
			e.Options = fillOptions(e.Options, params)
			return e, params, true
		}
	}
	return CatalogEntry{}, nil, false
}

func parameters(pattern, segs []string) map[string]string {
	params := map[string]string{}
	for i, p := range pattern {
		if isVariable(p) {
			params[p[1:len(p)-1]] = segs[i]
		}
	}
	return params
}

// label is a DNS label as it is compared: in lower case (RFC 1123, 2.1).
var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// inName says how a variable becomes a part of a certificate's names.
type inName struct {
	variable string
	whole    bool // it is a name, and not a label of one
}

// nameable says why a resource's parameters cannot be parts of a certificate's
// names. Those are compared without case, dots divide them, and one at the end counts
// for nothing: whoever may have certs/PAY, or certs/db.prod, must not by that have the name of pay, or a name below
// prod. (Everything else that Vault is asked for, it tells apart by case, and a path's segment stays a segment.)
func (e CatalogEntry) nameable(params map[string]string) error {
	for _, n := range e.inNames {
		v := params[n.variable]
		if strings.ToLower(v) != v {
			return fmt.Errorf("%s: %q has capital letters, and becomes a part of a certificate's name, where case does not count", n.variable, v)
		}
		if !n.whole && !label.MatchString(v) {
			return fmt.Errorf("%s: %q is no DNS label, and becomes one of a certificate's name", n.variable, v)
		}
		for part := range strings.SplitSeq(v, ".") {
			if !label.MatchString(part) {
				return fmt.Errorf("%s: %q is no DNS name, and becomes a certificate's", n.variable, v)
			}
		}
	}
	return nil
}

// namesIn are the variables that are a name, or a part of one, that the entry has certified: DNS names and the hosts of URIs.
func namesIn(e CatalogEntry) (out []inName) {
	if e.Kind != KindPKI {
		return nil
	}
	for _, option := range []string{"common_name", "dns_sans", "uri_sans"} {
		for _, name := range namesOfOption(e.Options[option]) {
			if option == "uri_sans" {
				name = host(name)
			}
			for _, v := range anyVariable.FindAllString(name, -1) {
				out = append(out, inName{v[1 : len(v)-1], v == name})
			}
		}
	}
	return out
}

func namesOfOption(value string) []string {
	return strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' })
}

// host is the authority of a URI, which may have variables in it; RFC 3986, 3.2.
func host(uri string) string {
	_, rest, _ := strings.Cut(uri, "://")
	h, _, _ := strings.Cut(rest, "/")
	return h
}

// runTogether finds two variables of an option between which nothing stands that no parameter can have: with
// "{tenant}-{vm}", tenant a with vm b-c and tenant a-b with vm c would be one. In DNS names a dot divides, as labels have none.
func runTogether(kind Kind, option, value string) (a, b string, bad bool) {
	dots := func(text string) (string, string, bool) { return adjacent(text, ".") }
	switch {
	case kind != KindPKI:
		return adjacent(value, "")
	case option != "uri_sans":
		return dots(value)
	}
	for _, uri := range namesOfOption(value) {
		h := host(uri)
		if a, b, bad = dots(h); bad {
			return a, b, bad
		}
		if a, b, bad = adjacent(strings.Replace(uri, h, "", 1), ""); bad {
			return a, b, bad
		}
	}
	return "", "", false
}

// adjacent finds two variables with nothing between them that divides: none of what a path's segment may have, but for also.
func adjacent(text, also string) (a, b string, found bool) {
	at := anyVariable.FindAllStringIndex(text, -1)
	for i := 1; i < len(at); i++ {
		between := text[at[i-1][1]:at[i][0]]
		if !strings.ContainsFunc(between, func(r rune) bool { return !pathSegment.MatchString(string(r)) || strings.ContainsRune(also, r) }) {
			return text[at[i-1][0]:at[i-1][1]], text[at[i][0]:at[i][1]], true
		}
	}
	return "", "", false
}

func fill(key string, params map[string]string) string {
	segs := strings.Split(key, "/")
	for i, s := range segs {
		if strings.HasPrefix(s, "{") {
			segs[i] = params[s[1:len(s)-1]]
		}
	}
	return strings.Join(segs, "/")
}

func fillOptions(options, params map[string]string) map[string]string {
	if len(options) == 0 {
		return nil
	}
	out := make(map[string]string, len(options))
	for name, value := range options {
		out[name] = anyVariable.ReplaceAllStringFunc(value, func(v string) string { return params[v[1:len(v)-1]] })
	}
	return out
}
