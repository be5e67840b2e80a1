package strictyaml

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

type file struct {
	Listen  string              `json:"listen"`
	Offline bool                `json:"offline"`
	Bytes   int                 `json:"bytes"`
	Rate    *float64            `json:"rate"`
	Config  map[string]any      `json:"config"`
	Labels  map[string]string   `json:"labels"`
	Values  map[string][]string `json:"values"`
	After   time.Time           `json:"after"`
	Entries []entry             `json:"entries"`
}

type entry struct {
	Pattern string `json:"pattern"`
	Policy  string `json:"policy"`
}

// TestReadsAsWritten: what stands in a text field is text, however YAML's readers would take it elsewhere.
func TestReadsAsWritten(t *testing.T) {
	var got file
	err := Unmarshal([]byte(`# comment
listen: off
offline: yes
bytes: 32
rate: 0.5
config: {a: 1, b: true, c: text, d: "no", e: [1.5, x-1], f: null, g: 127.0.0.1:80, h: 1.2.3}
labels: {no: no, "1": 010, x: 1.10, y: 12e4, z: 2026-01-01, n: 0x1F, q: "null"}
values: {measurement: [0012345, 12e345678, 1_000]}
after: 2026-01-01T00:00:00Z
entries:
  - {pattern: "disks/{vm}", policy: disks}
  - pattern: db/*
    policy: >-
      db
`), &got)
	if err != nil {
		t.Fatal(err)
	}
	half := 0.5
	want := file{
		Listen: "off", Offline: true, Bytes: 32, Rate: &half,
		Config:  map[string]any{"a": 1.0, "b": true, "c": "text", "d": "no", "e": []any{1.5, "x-1"}, "f": nil, "g": "127.0.0.1:80", "h": "1.2.3"},
		Labels:  map[string]string{"no": "no", "1": "010", "x": "1.10", "y": "12e4", "z": "2026-01-01", "n": "0x1F", "q": "null"},
		Values:  map[string][]string{"measurement": {"0012345", "12e345678", "1_000"}},
		After:   time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		Entries: []entry{{"disks/{vm}", "disks"}, {"db/*", "db"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	var same file
	if err := Unmarshal([]byte(`{"listen": "off", "entries": [{"pattern": "a\/b\u00e9", "policy": "x"}], "config": {"n": 9007199254740992}}`), &same); err != nil || same.Entries[0].Pattern != "a/bé" {
		t.Errorf("JSON: %+v, %v", same, err)
	}
	if err := Unmarshal([]byte("# nothing\n"), &same); err != nil {
		t.Errorf("empty: %v", err)
	}
}

func TestRefuses(t *testing.T) {
	for name, c := range map[string]struct{ doc, want string }{
		"unknown":                    {"listen: a\nlisten_on: b", `line 2: unknown field "listen_on"`},
		"unknown, inside":            {"entries:\n- pattern: a\n  poliy: b", `line 3: entries[0]: unknown field "poliy"`},
		"other case":                 {"Listen: a", `unknown field "Listen": it is written "listen"`},
		"long s":                     {"liſten: a", `it is written "listen"`},
		"twice":                      {"listen: a\nlisten: b", `line 2: the name "listen" occurs twice`},
		"twice, quoted":              {"listen: a\n\"listen\": b", "occurs twice"},
		"twice in a map":             {"labels: {a: b, a: c}", "occurs twice"},
		"anchor":                     {"entries:\n- &a {pattern: x}\n- *a", "line 2: entries[0]: an anchor or alias"},
		"merge key":                  {"labels:\n  <<: {a: b}", "a merge key"},
		"tag":                        {"listen: !!str off", "a tag, !!str"},
		"binary":                     {"listen: !!binary AAAA", "a tag, !!binary"},
		"second document":            {"listen: a\n---\nlisten: b", "a second document"},
		"octal":                      {"bytes: 010", `line 1: bytes: "010" is no decimal number`},
		"hexadecimal":                {"bytes: 0x10", "no decimal number"},
		"underscore":                 {"bytes: 1_000", "no decimal number"},
		"sexagesimal":                {"bytes: 1:30", "no decimal number"},
		"infinity":                   {"rate: .inf", "no decimal number"},
		"a fraction for an int":      {"bytes: 1.5", "bytes: number 1.5 is not for a field of type int"},
		"text for a number":          {`bytes: "32"`, "bytes: string is not for a field of type int"},
		"a word for a boolean":       {"offline: maybe", `"maybe" is neither`},
		"a list for text":            {"listen: [a]", "listen: array is not for"},
		"off, of any type":           {"config: {a: off}", `line 1: config.a: "off" has several readings`},
		"octal, of any type":         {"config: {a: 010}", "several readings"},
		"date, of any type":          {"config: {a: 2026-01-01}", "several readings"},
		"time, of any type":          {"config: {a: 12:30}", "several readings"},
		"large number, of any type":  {"config: {a: 9007199254740993}", "config.a: the number 9007199254740993 is not kept exactly"},
		"name that is a list":        {"? [a]\n: b", "a name that is no text"},
		"octal name, of any type":    {"config: {010: a}", `the name "010" has several readings`},
		"name off, of any type":      {"config: {a: {off: b}}", "several readings"},
		"control character in names": {"labels: {\"a\\0b\": c}", "control characters"},
		"no date":                    {"after: yesterday", "yesterday"},
		"not YAML":                   {"a: b: c", "mapping values are not allowed"},
	} {
		var f file
		if err := Unmarshal([]byte(c.doc), &f); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	f.Add([]byte("listen: off\nconfig: {a: [1, b]}\nentries:\n- pattern: x"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		var v file
		_ = Unmarshal(b, &v) // no input panics
	})
}
