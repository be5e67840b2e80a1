package strictjson

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
)

type level struct {
	SVN    int            `json:"svn"`
	Status string         `json:"status"`
	More   map[string]any `json:"more"`
	Raw    json.RawMessage
}

type document struct {
	level
	Levels []*level `json:"levels"`
	Any    any      `json:"any"`
}

// TestRefuses: each document has a second reading, and the error names the place.
func TestRefuses(t *testing.T) {
	for name, c := range map[string]struct{ doc, want string }{
		"name twice":                   {`{"svn":1,"svn":2}`, `byte 9: the name "svn" occurs twice`},
		"name twice, escaped":          {`{"svn":1,"\u0073vn":2}`, "occurs twice"},
		"name twice, nobody's":         {`{"x":{"a":1,"a":1}}`, `in x: the name "a" occurs twice`},
		"name twice in a raw message":  {`{"Raw":{"a":1,"a":1}}`, "in Raw"},
		"name twice, deep":             {`{"levels":[{},{"more":{"a":[{"b":1,"b":2}]}}]}`, `in levels[1].more.a[0]: the name "b" occurs twice`},
		"other case":                   {`{"levels":[{"SVN":1}]}`, `in levels[0]: the name "SVN" is not "svn"`},
		"other case, beside the right": {`{"status":"a","Status":"b"}`, `"Status" is not "status"`},
		"long s":                       {`{"ſvn":1}`, `is not "svn"`},
		"long s, escaped":              {`{"\u017fvn":1}`, `is not "svn"`},
		"field without a tag":          {`{"raw":1}`, `is not "Raw"`},
		"NUL in a name":                {`{"svn\u0000":1}`, "control characters"},
		"control character in a name":  {`{"x\u001b[2J":1}`, "control characters"},
		"DEL in a name":                {`{"x` + "\x7f" + `":1}`, "control characters"},
		"invalid UTF-8":                {"{\"status\":\"a\xff\"}", "in status: invalid UTF-8"},
		"invalid UTF-8 in a name":      {"{\"a\xc0\x80\":1}", "invalid UTF-8"},
		"half a pair":                  {`{"status":"\ud800"}`, "half of a surrogate pair"},
		"half a pair, then another":    {`{"status":"\ud800\ud800"}`, "half of a surrogate pair"},
		"half a pair, the second":      {`{"status":"\udc00"}`, "half of a surrogate pair"},
		"half a pair at the end":       {`{"status":"\ud83dx"}`, "half of a surrogate pair"},
		"trailing data":                {`{"svn":1}{"svn":2}`, "after top-level value"},
		"trailing NUL":                 {"{}\x00", "after top-level value"},
		"nothing":                      {``, "unexpected end"},
		"byte order mark":              {"\ufeff{}", "invalid character"},
		"deep":                         {strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100), "nested"},
		"deep arrays":                  {strings.Repeat(`[`, 100) + strings.Repeat("]", 100), "nested"},
		"integer beyond 2^53":          {`{"any":[9007199254740993]}`, "in any[0]: the number 9007199254740993 is not kept exactly"},
		"the same with an exponent":    {`{"any":9007199254740993e0}`, "not kept exactly"},
		"the same in a map":            {`{"more":{"x":18446744073709551615}}`, "in more.x"},
		"underflow":                    {`{"any":1e-999999}`, "not kept exactly"},
		"overflow":                     {`{"any":1e400}`, "not kept exactly"},
		"long fraction":                {`{"any":0.12345678901234567890}`, "not kept exactly"},
		"integer for an int":           {`{"svn":1.5}`, "cannot unmarshal"},
		"comment":                      {`{/**/}`, "invalid character"},
	} {
		t.Run(name, func(t *testing.T) {
			var d document
			err := Unmarshal([]byte(c.doc), &d)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestAccepts(t *testing.T) {
	doc := ` {"svn":3, "status":"\ud83d\ude00 \u0000 é", "levels":[{"svn":1},null], "any":[1,-0,0.1,1e3,12345678901234567,9007199254740992,null,true],` +
		` "hidden":1, "unknown":{"Unknown":99999999999999999999}, "more":{"a":1,"A":2}, "Raw":[18446744073709551615]} ` + "\n"
	doc = strings.Replace(doc, "12345678901234567", "12345678901234568", 1) // a multiple of 8, which a float64 keeps
	var got, want document
	if err := Unmarshal([]byte(doc), &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(doc), &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	var e *Error
	if err := UnmarshalKnown([]byte(doc), &got); !errors.As(err, &e) || !strings.Contains(e.Reason, "unknown") {
		t.Errorf("unknown members: %v", err)
	}
	if err := UnmarshalKnown([]byte(`{"svn":1,"any":{"x":1},"Raw":{"y":2}}`), &got); err != nil {
		t.Error(err)
	}
	v, err := Numbers([]byte(`{"n":18446744073709551615}`))
	if err != nil || v.(map[string]any)["n"] != json.Number("18446744073709551615") {
		t.Errorf("%v, %v", v, err)
	}
}

// FuzzUnmarshal: what is accepted reads the same by way of any other decoding of it.
func FuzzUnmarshal(f *testing.F) {
	for _, s := range []string{`{"svn":1,"levels":[{"status":"a"}],"any":{"x":[1,"\ud83d\ude00"]}}`, `[[{}],"",1e3]`, ` null`, `{"a":{"b":"\\\""}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		var d document
		if Unmarshal(doc, &d) != nil {
			return
		}
		if Check(doc) != nil {
			t.Fatal("Unmarshal accepts what Check refuses")
		}
		var generic any
		if err := json.Unmarshal(doc, &generic); err != nil {
			t.Skip() // a number that no float64 holds, in a place that nothing reads
		}
		again, err := json.Marshal(generic)
		if err != nil {
			t.Fatal(err)
		}
		var second document
		if err := Unmarshal(again, &second); err != nil {
			t.Skip() // a number in a place that nothing reads
		}
		d.Raw, second.Raw = nil, nil
		for _, l := range append(d.Levels, second.Levels...) {
			if l != nil {
				l.Raw = nil
			}
		}
		if !reflect.DeepEqual(d, second) {
			t.Errorf("%q reads as %+v, and by way of maps as %+v", doc, d, second)
		}
	})
}
