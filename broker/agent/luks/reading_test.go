package luks

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestOneReading: a JSON area that two readers could read differently is refused, and the error says where.
func TestOneReading(t *testing.T) {
	in := func(old, text string) string { return strings.Replace(sample, old, text, 1) }
	segment := `"iv_tweak":"0","encryption":"aes-xts-plain64"`
	for name, c := range map[string]struct{ doc, want string }{
		"null cipher behind a NUL":       {in(segment, segment+`,"encryption\u0000":"cipher_null-ecb"`), "control characters"},
		"keyslot's null cipher":          {in(`"size":"258048"`, `"size":"258048","encryption\u0000":"cipher_null-ecb"`), "control characters"},
		"segment of a NUL name":          {in(`"segments":{`, `"segments":{"0\u0000":{"type":"linear","offset":"0","size":"dynamic"},`), "control characters"},
		"type behind a NUL":              {in(`"0":{"type":"crypt"`, `"0":{"type":"crypt","type\u0000":"linear"`), "control characters"},
		"value behind a NUL":             {in(`"aes-xts-plain64","sector_size"`, `"aes-xts-plain64\u0000","sector_size"`), "control characters"},
		"NUL in another's token":         {in(`"jwe":{}`, `"jwe\u0000":{}`), "control characters"},
		"NUL in a value of its":          {in(`"jwe":{}`, `"jwe":"a\u0000"`), "control characters"},
		"long s":                         {in(`"size":"dynamic"`, `"size":"1048576","ſize":"dynamic"`), `"ſize" is not one that cryptsetup writes`},
		"long s, flags":                  {in(`"sector_size":512`, `"sector_size":512,"flags":["backup-final"],"flagſ":[]`), "flagſ"},
		"long s, escaped":                {in(`"size":"dynamic"`, `"size":"1048576","\u017fize":"dynamic"`), "ſize"},
		"name escaped":                   {in(`"size":"dynamic"`, `"\u0073ize":"dynamic"`), `"size" is not one that cryptsetup writes`},
		"name with a space":              {in(`"size":"dynamic"`, `"size":"dynamic","size ":"512"`), `"size "`},
		"name with a zero width":         {in(`"size":"dynamic"`, "\"size\":\"dynamic\",\"size\u200b\":\"512\""), "cryptsetup writes"},
		"name in another case":           {in(`"size":"dynamic"`, `"Size":"dynamic"`), `segments: JSON at byte`},
		"unknown member":                 {in(`"sector_size":512`, `"sector_size":512,"sector":1`), "sector"},
		"unknown section":                {in(`"segments":{`, `"segment":{},"segments":{`), `"segment" is unknown`},
		"section twice":                  {in(`"segments":{`, `"segments":{},"segments":{`), `"segments" occurs twice`},
		"section twice, other case":      {in(`"segments":{`, `"Segments":{},"segments":{`), `"Segments" is not "segments"`},
		"member twice":                   {in(`"sector_size":512`, `"sector_size":512,"encryption":"cipher_null-ecb"`), "occurs twice"},
		"member twice in a token":        {in(`"type":"clevis"`, `"type":"clevis","type":"claviger"`), "occurs twice"},
		"number as a power":              {in(`"sector_size":512`, `"sector_size":5.12e2`), "sector_size"},
		"number past 32 bits":            {in(`"iterations":1000,"salt":"OZ`, `"iterations":4294967297,"salt":"OZ`), "keyslots: 0.kdf.iterations is no whole number"},
		"negative number":                {in(`"iterations":1000,"salt":"OZ`, `"iterations":-1,"salt":"OZ`), "iterations is no whole number"},
		"negative zero":                  {in(`"sector_size":512`, `"sector_size":512,"flags":[],"iv_tweak":-0`), "iv_tweak"},
		"null for a member":              {in(`"sector_size":512`, `"sector_size":512,"integrity":null,"flags":null`), "segments"},
		"null for a section":             {in(section("segments"), `"segments":null`), "segments"},
		"no section":                     {in(section("segments")+",", ``), "segments: missing"},
		"member missing":                 {in(`"iv_tweak":"0",`, `"iv_tweak":"",`), "iv_tweak"},
		"not ASCII":                      {in(`"aes-xts-plain64","sector_size"`, `"aes-xts-plain64é","sector_size"`), "ASCII"},
		"trailing data":                  {sample + "{}", "after top-level value"},
		"bytes behind the end":           {sample + "\x00{}", "data after its end"},
		"comment":                        {in(`"segments"`, `/* */"segments"`), "invalid character"},
		"single quotes":                  {in(`"segments"`, `'segments'`), "invalid character"},
		"not an object":                  {`[]`, "cannot unmarshal"},
		"deep":                           {in(`"jwe":{}`, `"jwe":`+strings.Repeat(`{"a":`, 100)+"1"+strings.Repeat("}", 100)), "nested"},
		"token without an object":        {in(`{"type":"clevis","keyslots":["0"],"jwe":{}}`, `[]`), "token 1"},
		"token's name":                   {in(`"1":{"type":"clevis"`, `"01":{"type":"clevis"`), `"01" is no number`},
		"a member more in ours":          {in(`"claviger_version"`, `"x":1,"claviger_version"`), `token 0`},
		"data before the header's end":   {in(`"offset":"16777216"`, `"offset":"512"`), "the data begins"},
		"data far away":                  {in(`"offset":"16777216"`, `"offset":"1099511627776"`), "the data begins"},
		"data at an offset with zeros":   {in(`"offset":"16777216"`, `"offset":"0016777216"`), "the data begins"},
		"keyslot without its key's size": {in(`"type":"luks2","key_size":64`, `"type":"luks2"`), "key_size"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.doc == sample {
				t.Fatal("nothing changed")
			}
			_, err := Read(bytes.NewReader(image(c.doc, c.doc)))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// change edits the binary part of a copy and mends its checksum.
func change(disk []byte, copyOf int, edit func(bin []byte)) []byte {
	h := disk[copyOf*minHeaderSize : (copyOf+1)*minHeaderSize]
	edit(h)
	clear(h[448 : 448+sha256.Size])
	sum := sha256.Sum256(h)
	copy(h[448:], sum[:])
	return disk
}

// TestBinaryOneReading: the same for the binary part, and for two copies that differ.
func TestBinaryOneReading(t *testing.T) {
	evil := strings.Replace(sample, `"iv_tweak":"0"`, `"iv_tweak":"0","encryption\u0000":"cipher_null-ecb"`, 1)
	both := func(edit func(bin []byte)) []byte {
		return change(change(image(sample, sample), 0, edit), 1, edit)
	}
	for name, c := range map[string]struct {
		disk []byte
		want string
	}{
		"bytes behind the label":      {both(func(b []byte) { copy(b[24:], "a\x00b") }), "label"},
		"label without an end":        {both(func(b []byte) { copy(b[24:72], strings.Repeat("a", 48)) }), "label"},
		"label that moves the cursor": {both(func(b []byte) { copy(b[24:], "\x1b[2J") }), "label"},
		"bytes behind the UUID":       {both(func(b []byte) { b[207] = 'x' }), "UUID"},
		"no UUID": {both(func(b []byte) {
			copy(b[168:], "../../etc/passwd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
		}), "UUID"},
		"bytes behind the algorithm":   {both(func(b []byte) { copy(b[72:], "sha256\x00sha1") }), "checksum algorithm"},
		"another algorithm":            {both(func(b []byte) { copy(b[72:], "sha512") }), `checksum "sha512"`},
		"bytes in the padding":         {both(func(b []byte) { b[300] = 1 }), "padding"},
		"bytes in the second padding":  {both(func(b []byte) { b[4095] = 1 }), "padding"},
		"bytes behind the checksum":    {both(func(b []byte) { b[511] = 1 }), "checksum"},
		"newer copy has two readings":  {image(sample, evil, 3, 4), "control characters"},
		"older copy has two readings":  {image(sample, evil, 4, 3), "control characters"},
		"copies of one number differ":  {image(sample, strings.Replace(sample, "luks/vm-1", "luks/vm-2", 1), 3, 3), "differ"},
		"first broken, second hostile": {append([]byte("xxxx"), image(sample, evil, 4, 4)[4:]...), "control characters"},
		"first for another place":      {change(image(sample, evil), 0, func(b []byte) { b[262] = 2 }), "control characters"},
	} {
		t.Run(name, func(t *testing.T) {
			if h, err := Read(bytes.NewReader(c.disk)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %+v, %v, want %q", h, err, c.want)
			}
		})
	}
	labelled := both(func(b []byte) { copy(b[24:], "rööt"); copy(b[208:], "subsystem") })
	if h := read(t, labelled); h.Label != "rööt" {
		t.Errorf("label %q", h.Label)
	}
}

// TestMACCovers: what WriteDetached writes of the segment and the digest is in
// the MAC, member by member; a member that is added to the types has to be too, or fixed by Check.
func TestMACCovers(t *testing.T) {
	fixed := map[string]string{
		"Integrity": "Check wants none", "Flags": "Check wants none", "Segments": "Check wants the one segment", "Keyslots": "a person may add a passphrase",
	}
	key := bytes.Repeat([]byte{1}, 32)
	disk := image(sample, sample)
	want, err := read(t, disk).MAC(key)
	if err != nil {
		t.Fatal(err)
	}
	vary := func(v reflect.Value, name string, put func(*Header)) {
		for i := range v.NumField() {
			field := v.Type().Field(i).Name
			if fixed[field] != "" {
				continue
			}
			old := reflect.ValueOf(v.Field(i).Interface())
			switch f := v.Field(i); f.Kind() {
			case reflect.String:
				f.SetString(f.String() + "x")
			case reflect.Int:
				f.SetInt(f.Int() + 1)
			default:
				t.Errorf("%s.%s is in no MAC and not fixed", name, field)
			}
			h := read(t, disk)
			put(h)
			if got, err := h.MAC(key); err != nil || bytes.Equal(got, want) {
				t.Errorf("%s.%s is not in the MAC (%v)", name, field, err)
			}
			v.Field(i).Set(old)
		}
	}
	seg, d := read(t, disk).Meta.Segments["0"], read(t, disk).Meta.Digests["0"]
	vary(reflect.ValueOf(&seg).Elem(), "segment", func(h *Header) { h.Meta.Segments["0"] = seg })
	vary(reflect.ValueOf(&d).Elem(), "digest", func(h *Header) { h.Meta.Digests["0"] = d })
}

func cryptsetup(t testing.TB) string {
	t.Helper()
	for _, path := range []string{"cryptsetup", "/usr/sbin/cryptsetup", "/sbin/cryptsetup"} {
		if p, err := exec.LookPath(path); err == nil {
			return p
		}
	}
	t.Skip("cryptsetup is not installed (Debian: apt-get install cryptsetup-bin)")
	return ""
}

// TestRealHeaders: what cryptsetup makes is read, and what it cannot be used for is refused with the reason.
func TestRealHeaders(t *testing.T) {
	if testing.Short() {
		t.Skip("runs cryptsetup; left out with -short")
	}
	bin := cryptsetup(t)
	path := filepath.Join(t.TempDir(), "disk")
	pass := path + ".pass"
	if err := os.WriteFile(pass, []byte("pass"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(t *testing.T, stdin string, args ...string) {
		t.Helper()
		cmd := exec.Command(bin, append([]string{"--batch-mode"}, args...)...)
		cmd.Stdin = strings.NewReader(stdin)
		if out, err := cmd.CombinedOutput(); bytes.Contains(out, []byte("device-mapper")) {
			t.Skipf("this machine has no device-mapper, which cryptsetup %q needs", args)
		} else if err != nil {
			t.Fatalf("cryptsetup %q: %v: %s", args, err, out)
		}
	}
	quick := []string{"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"}
	format := append([]string{"luksFormat", "--type", "luks2", "--key-file", pass, path}, quick...)
	for name, c := range map[string]struct {
		format []string
		then   [][]string // arguments; the first is stdin
		want   string     // of Check
	}{
		"plain":      {format: format},
		"Argon2":     {format: []string{"luksFormat", "--type", "luks2", "--key-file", pass, path, "--pbkdf-memory", "64", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1"}},
		"labels":     {format: append(slices.Clone(format), "--label", "root disk", "--subsystem", "x")},
		"sectors":    {format: append(slices.Clone(format), "--sector-size", "4096")},
		"large area": {format: append(slices.Clone(format), "--luks2-metadata-size", "64k", "--luks2-keyslots-size", "512k")},
		"passphrases added and removed": {format: format, then: [][]string{
			append([]string{"second", "luksAddKey", "--key-file", pass, path, "-"}, quick...),
			append([]string{"third", "luksAddKey", "--key-file", pass, path, "-"}, quick...),
			{"", "luksKillSlot", "--key-file", pass, path, "1"},
			{"", "config", "--key-slot", "2", "--priority", "prefer", path},
		}},
		"others' tokens": {format: format, then: [][]string{
			{`{"type":"systemd-tpm2","keyslots":["0"],"tpm2-blob":"AAA/+A==","tpm2-pcrs":[7],"tpm2-pcr-bank":"sha256","tpm2-policy-hash":"00ff","tpm2-pin":false}`, "token", "import", "--json-file", "-", path},
			{`{"type":"clevis","keyslots":["0"],"jwe":{"ciphertext":"x","protected":"eyJ","tag":"t","header":{"n":null,"f":1.5}}}`, "token", "import", "--json-file", "-", path},
			{`{"type":"other","keyslots":[],"text":"line\n tab \t, umlaut ü, slash /, quote \""}`, "token", "import", "--json-file", "-", path},
		}},
		"flags":           {format: format, then: [][]string{{"", "config", "--priority", "normal", "--key-slot", "0", path}}},
		"passphrase gone": {format: format, then: [][]string{{"", "luksErase", path}}, want: "no keyslots"},
		"null cipher":     {format: append(slices.Clone(format), "--cipher", "cipher_null-ecb"), want: "cipher"},
		"another cipher":  {format: append(slices.Clone(format), "--cipher", "serpent-xts-plain64"), want: "cipher"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(f.Truncate(32<<20), f.Close()); err != nil {
				t.Fatal(err)
			}
			run(t, "", c.format...)
			for _, args := range c.then {
				run(t, args[0], args[1:]...)
			}
			disk, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			h, err := Read(bytes.NewReader(disk))
			if err != nil {
				t.Fatal(err)
			}
			if err := h.Check(Rules{}); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			compare(t, bin, h, disk)
		})
	}
}

// compare fails if cryptsetup reads a disk that was accepted, or the copy of its header, otherwise than this package.
func compare(t testing.TB, bin string, h *Header, disk []byte) {
	t.Helper()
	dir := t.TempDir()
	var detached memory
	if err := h.WriteDetached(&detached, bytes.NewReader(disk)); err != nil {
		t.Fatal(err)
	}
	doc, err := h.document()
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"disk": disk, "detached": detached} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(bin, "luksDump", "--dump-json-metadata", path).CombinedOutput()
		if err != nil {
			if name == "detached" && h.Check(Rules{}) == nil {
				t.Logf("cryptsetup refuses what Check accepts: %s\n%s", out, doc)
			}
			continue
		}
		var ours, theirs map[string]any
		if err := errors.Join(json.Unmarshal(doc, &ours), json.Unmarshal(out, &theirs)); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if name == "disk" { // other programs' tokens are not for us
			delete(ours, "tokens")
			delete(theirs, "tokens")
		}
		if !reflect.DeepEqual(ours, theirs) {
			t.Errorf("the %s has two readings:\nours       %s\ncryptsetup %s", name, doc, out)
		}
	}
}

// memory is a file in memory.
type memory []byte

func (m *memory) WriteAt(b []byte, at int64) (int, error) {
	if grow := int(at) + len(b) - len(*m); grow > 0 {
		*m = append(*m, make([]byte, grow)...)
	}
	return copy((*m)[at:], b), nil
}

var memberForm = regexp.MustCompile(`"([a-z_]+)":("[^"]*"|[0-9]+|\[[^\]]*\])`)

// small is sample with less room for keyslots, so that little has to be written.
var small = strings.NewReplacer("16777216", "524288", "16744448", "491520").Replace(sample)

// mutate returns small with a member or two more, or changed, whose names and values are variations of those that decide.
func mutate(r *rand.Rand) string {
	doc := []byte(small)
	members := memberForm.FindAllSubmatchIndex(doc, -1)
	for range 1 + r.IntN(2) {
		m := members[r.IntN(len(members))]
		if m[1] > len(doc) {
			continue
		}
		name := string(doc[m[2]:m[3]])
		if r.IntN(2) == 0 {
			name = deciding[r.IntN(len(deciding))]
		}
		member := `"` + varyName(r, name) + `":` + varyValue(r, string(doc[m[4]:m[5]]))
		switch r.IntN(4) {
		case 0:
			doc = slices.Replace(doc, m[0], m[1], []byte(member)...)
		case 1:
			doc = slices.Insert(doc, m[0], []byte(member+",")...)
		default:
			doc = slices.Insert(doc, m[1], []byte(","+member)...)
		}
		members = memberForm.FindAllSubmatchIndex(doc, -1)
	}
	if r.IntN(2) == 0 { // what two readers read alike
		doc = bytes.ReplaceAll(doc, []byte(","), []byte(" ,\n"))
		doc = bytes.ReplaceAll(doc, []byte("/"), []byte(`\/`))
	}
	return string(doc)
}

var deciding = []string{"type", "encryption", "offset", "size", "iv_tweak", "sector_size", "hash", "iterations", "key_size", "flags", "requirements", "integrity", "keyslots", "segments", "digests", "priority", "salt", "digest", "0"}

func varyName(r *rand.Rand, name string) string {
	switch r.IntN(9) {
	case 0:
		return name + `\u0000` + []string{"", "x", name}[r.IntN(3)]
	case 1:
		return `\u0000` + name
	case 2:
		return strings.Replace(name, "s", "ſ", 1)
	case 3:
		return strings.ToUpper(name[:1]) + name[1:]
	case 4:
		return fmt.Sprintf(`\u%04x`, name[0]) + name[1:]
	case 5:
		return name + []string{" ", "\u200b", `\u200b`, "\x7f", `\u007f`, "\t", `\/`, "\xff", `\ud800`}[r.IntN(9)]
	default:
		return name
	}
}

func varyValue(r *rand.Rand, value string) string {
	other := []string{
		`"linear"`, `"crypt"`, `"cipher_null-ecb"`, `"aes-xts-plain64"`, `"aes-xts-plain64\u0000x"`, `"0"`, `"00"`, `"+0"`, `" 0"`, `"0x0"`, `"33554432"`, `"dynamic"`, `"dynamic\u0000"`,
		`512`, `5.12e2`, `512.0`, `-0`, `4096`, `4294967808`, `18446744073709552128`, `NaN`, `null`, `true`, `[]`, `["0"]`, `["0\u0000"]`, `{}`, `["backup-final"]`, `{"mandatory":["online-reencrypt-v2"]}`, `{"mandatory":[]}`,
	}
	if r.IntN(3) == 0 {
		return value
	}
	return other[r.IntN(len(other))]
}

// TestDifferential: of many mutated headers, those that are accepted read the same to cryptsetup. `make fuzz` runs it for longer.
func TestDifferential(t *testing.T) {
	if testing.Short() {
		t.Skip("runs cryptsetup; left out with -short")
	}
	bin := cryptsetup(t)
	accepted := 0
	const n = 2000
	for seed := range uint64(n) {
		if differs(t, bin, mutate(rand.New(rand.NewPCG(seed, 12)))) {
			accepted++
		}
	}
	t.Logf("%d of %d were accepted", accepted, n)
	if accepted < 20 {
		t.Errorf("%d mutated headers were accepted: this compares nothing", accepted)
	}
}

// FuzzDifferential is TestDifferential, led by coverage: the document itself is mutated as well.
func FuzzDifferential(f *testing.F) {
	bin := cryptsetup(f)
	f.Add([]byte(small), uint64(0))
	for seed := range uint64(20) {
		f.Add([]byte(mutate(rand.New(rand.NewPCG(seed, 3)))), seed)
	}
	f.Fuzz(func(t *testing.T, doc []byte, seed uint64) {
		if len(doc) > minHeaderSize-binarySize {
			return
		}
		differs(t, bin, string(doc))
		differs(t, bin, mutate(rand.New(rand.NewPCG(seed, uint64(binary.BigEndian.Uint32(append([]byte{0, 0, 0, 0}, doc...)))))))
	})
}

// differs compares, and says whether the document was accepted.
func differs(t testing.TB, bin, doc string) bool {
	t.Helper()
	if len(doc) > minHeaderSize-binarySize {
		return false
	}
	disk := make([]byte, 1<<20)
	writeHeaders(disk, doc, doc)
	h, err := Read(bytes.NewReader(disk))
	if err != nil || h.Check(Rules{}) != nil {
		return false
	}
	compare(t, bin, h, disk)
	return true
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte(`{"segments":{"0":{"offset":"16777216"}}}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		if len(doc) > minHeaderSize-binarySize || bytes.IndexByte(doc, 0) >= 0 {
			return
		}
		b := make([]byte, 2*minHeaderSize)
		writeHeaders(b, string(doc), string(doc))
		h, err := Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		_ = h.Check(Rules{})
		for _, id := range h.Ours() {
			if h.Verify(id, make([]byte, 32)) == nil {
				t.Error("verified under a key of zeros")
			}
		}
	})
}
