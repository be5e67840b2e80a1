package luks

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// sample is the JSON area of a disk that cryptsetup 2.6.1 formatted for us.
const sample = `{"keyslots":{"0":{"type":"luks2","key_size":64,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},"area":{"type":"raw","offset":"32768","size":"258048","encryption":"aes-xts-plain64","key_size":64},"kdf":{"type":"pbkdf2","hash":"sha256","iterations":1000,"salt":"OZ5IJjDOiXVnRMT4K2iyLfKk/3Fxw2bUrglDY9FeonU="}}},"tokens":{"0":{"type":"claviger","keyslots":["0"],"claviger_resource":"luks/vm-1","claviger_version":"1","claviger_mac":"AAAA"},"1":{"type":"clevis","keyslots":["0"],"jwe":{}}},"segments":{"0":{"type":"crypt","offset":"16777216","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":512}},"digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":1000,"salt":"XFbsmZAvKN6bNa7PL9Qvredk4YCgulhcOgqrr6NSXco=","digest":"va3xWLjoti1VRNZxpBu71PPk0cr0EPtAPlXhhx4lw+E="}},"config":{"json_size":"12288","keyslots_size":"16744448"}}`

// section is a member of sample, whole.
func section(name string) string {
	begin := strings.Index(sample, `"`+name+`":{`)
	depth := 0
	for i, c := range sample[begin:] {
		switch c {
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return sample[begin : begin+i+1]
			}
		}
	}
	panic("no section " + name)
}

// image is a disk with two copies of a header, as section 2 of the format lays it out.
func image(first, second string, sequences ...uint64) []byte {
	b := make([]byte, 17<<20)
	writeHeaders(b, first, second, sequences...)
	return b
}

func writeHeaders(b []byte, first, second string, sequences ...uint64) {
	for i, doc := range []string{first, second} {
		h := b[i*minHeaderSize : (i+1)*minHeaderSize]
		copy(h, []string{"LUKS\xba\xbe", "SKUL\xba\xbe"}[i])
		binary.BigEndian.PutUint16(h[6:], 2)
		binary.BigEndian.PutUint64(h[8:], minHeaderSize)
		seq := uint64(3)
		if len(sequences) > i {
			seq = sequences[i]
		}
		binary.BigEndian.PutUint64(h[16:], seq)
		copy(h[72:], "sha256")
		copy(h[168:], "11111111-2222-3333-4444-555555555555")
		binary.BigEndian.PutUint64(h[256:], uint64(i*minHeaderSize))
		copy(h[binarySize:], doc)
		sum := sha256.Sum256(h)
		copy(h[448:], sum[:])
	}
}

func read(t *testing.T, b []byte) *Header {
	t.Helper()
	h, err := Read(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestRead(t *testing.T) {
	h := read(t, image(sample, sample))
	if err := h.Check(Rules{}); err != nil {
		t.Error(err)
	}
	if h.UUID != "11111111-2222-3333-4444-555555555555" || len(h.Meta.Tokens) != 1 || len(h.Ours()) != 1 {
		t.Errorf("%+v", h)
	}
	other := strings.Replace(sample, "luks/vm-1", "luks/vm-2", 1)
	resource := func(b []byte) string { return read(t, b).Meta.Tokens["0"].Resource }
	if got := resource(image(sample, other, 3, 4)); got != "luks/vm-2" {
		t.Errorf("took the older copy: %s", got)
	}
	if got := resource(image(sample, other, 4, 3)); got != "luks/vm-1" {
		t.Errorf("took the older copy: %s", got)
	}
	broken := image(sample, other, 4, 3)
	broken[460] ^= 1
	if got := resource(broken); got != "luks/vm-2" {
		t.Errorf("a broken first copy: %s", got)
	}
	broken[minHeaderSize+5000] ^= 1
	if _, err := Read(bytes.NewReader(broken)); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("two broken copies: %v", err)
	}
	if _, err := Read(bytes.NewReader(make([]byte, 1<<20))); !errors.Is(err, ErrNotLUKS2) {
		t.Errorf("zeros: %v", err)
	}
	luks1 := image(sample, sample)
	luks1[7] = 1
	if _, err := Read(bytes.NewReader(luks1)); err == nil || errors.Is(err, ErrNotLUKS2) {
		t.Errorf("LUKS1: %v", err)
	}
}

// TestCheck: each way in which a host could have data written in the clear, or read elsewhere.
func TestCheck(t *testing.T) {
	for name, c := range map[string]struct{ old, text, want string }{
		"null cipher of the data":   {`"iv_tweak":"0","encryption":"aes-xts-plain64"`, `"iv_tweak":"0","encryption":"cipher_null-ecb"`, "cipher"},
		"null cipher of a keyslot":  {`"size":"258048","encryption":"aes-xts-plain64"`, `"size":"258048","encryption":"cipher_null-ecb"`, "keyslot 0: its cipher"},
		"plain segment":             {`"0":{"type":"crypt"`, `"0":{"type":"linear"`, "not be encrypted"},
		"second segment":            {`"segments":{`, `"segments":{"1":{"type":"linear","offset":"0","size":"512"},`, "want one"},
		"segment of a fixed size":   {`"size":"dynamic"`, `"size":"512"`, "dynamic"},
		"other tweak":               {`"iv_tweak":"0"`, `"iv_tweak":"8"`, "iv_tweak"},
		"odd sectors":               {`"sector_size":512`, `"sector_size":1024`, "sectors"},
		"integrity":                 {`"sector_size":512`, `"sector_size":512,"integrity":{"type":"none"}`, "integrity"},
		"segment flags":             {`"sector_size":512`, `"sector_size":512,"flags":["backup-final"]`, "flags"},
		"weak PBKDF2":               {`"kdf":{"type":"pbkdf2","hash":"sha256","iterations":1000`, `"kdf":{"type":"pbkdf2","hash":"sha256","iterations":1`, "keyslot 0: PBKDF2"},
		"weak hash":                 {`"kdf":{"type":"pbkdf2","hash":"sha256"`, `"kdf":{"type":"pbkdf2","hash":"sha1"`, "PBKDF2"},
		"unknown derivation":        {`"kdf":{"type":"pbkdf2"`, `"kdf":{"type":"none"`, "key derivation"},
		"short keys":                {`"type":"luks2","key_size":64`, `"type":"luks2","key_size":1`, "keys of 1"},
		"keyslot over the data":     {`"offset":"32768"`, `"offset":"16777216"`, "between header and data"},
		"keyslot over the header":   {`"offset":"32768"`, `"offset":"4096"`, "between header and data"},
		"keyslot of a huge size":    {`"size":"258048"`, `"size":"9223372036854775807"`, "between header and data"},
		"re-encryption keyslot":     {`"0":{"type":"luks2"`, `"0":{"type":"reencrypt"`, "type"},
		"no keyslot":                {section("keyslots"), `"keyslots":{}`, "no keyslots"},
		"no digest":                 {section("digests"), `"digests":{}`, "digests"},
		"two digests":               {`"digests":{`, `"digests":{"1":` + strings.TrimPrefix(strings.TrimSuffix(section("digests"), "}"), `"digests":{"0":`) + ",", "want one"},
		"keyslot 32":                {`"keyslots":{"0"`, `"keyslots":{"32"`, "32"},
		"keyslot 00":                {`"keyslots":{"0"`, `"keyslots":{"00"`, "00"},
		"keyslot at 032768":         {`"offset":"32768"`, `"offset":"032768"`, "between header and data"},
		"keyslot at +32768":         {`"offset":"32768"`, `"offset":"+32768"`, "between header and data"},
		"another number of stripes": {`"stripes":4000`, `"stripes":1`, "stripes"},
		"salt with a line end":      {`"salt":"OZ5I`, `"salt":" OZ5I`, "salt"},
		"digest with bits to spare": {`digest":"va3xWLjoti1VRNZxpBu71PPk0cr0EPtAPlXhhx4lw+E="`, `digest":"va3xWLjoti1VRNZxpBu71PPk0cr0EPtAPlXhhx4lw+F="`, "digest 0"},
		"priority":                  {`"key_size":64,"af"`, `"key_size":64,"priority":3,"af"`, "priority"},
		"both derivations":          {`"kdf":{"type":"pbkdf2"`, `"kdf":{"time":4,"memory":1024,"cpus":1,"type":"pbkdf2"`, "Argon2"},
		"JSON area of another size": {`"json_size":"12288"`, `"json_size":"16384"`, "json_size"},
		"keyslots beyond reason":    {`"keyslots_size":"16744448"`, `"keyslots_size":"18446744073709551615"`, "keyslots_size"},
		"digest of nothing":         {`"segments":["0"],"hash"`, `"segments":[],"hash"`, "digest 0"},
		"weak digest":               {`"segments":["0"],"hash":"sha256"`, `"segments":["0"],"hash":"sha1"`, "digest 0"},
		"digest of no such keyslot": {`"keyslots":["0"],"segments"`, `"keyslots":["7"],"segments"`, "keyslot 7"},
		"re-encryption under way":   {`"keyslots_size":"16744448"`, `"keyslots_size":"16744448","requirements":{"mandatory":["online-reencrypt"]}`, "re-encryption"},
		"flags":                     {`"keyslots_size":"16744448"`, `"keyslots_size":"16744448","flags":["no-journal"]`, "flags"},
	} {
		t.Run(name, func(t *testing.T) {
			doc := strings.Replace(sample, c.old, c.text, 1)
			if doc == sample {
				t.Fatal("nothing changed")
			}
			err := read(t, image(doc, doc)).Check(Rules{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestMAC(t *testing.T) {
	key, h := bytes.Repeat([]byte{1}, 32), read(t, image(sample, sample))
	token, err := h.NewToken("0", "luks/vm-1", "1", key)
	if err != nil {
		t.Fatal(err)
	}
	enrolled := strings.Replace(sample, `"AAAA"`, `"`+token.MAC+`"`, 1)
	if err := read(t, image(enrolled, enrolled)).Verify("0", key); err != nil {
		t.Fatal(err)
	}
	if err := read(t, image(enrolled, enrolled)).Verify("0", bytes.Repeat([]byte{2}, 32)); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("another key: %v", err)
	}
	// Re-encryption leaves the one digest under another number.
	renamed := strings.Replace(enrolled, `"digests":{"0"`, `"digests":{"1"`, 1)
	if h := read(t, image(renamed, renamed)); h.Check(Rules{}) != nil || h.Verify("0", key) != nil {
		t.Errorf("a digest under another number: %v, %v", h.Check(Rules{}), h.Verify("0", key))
	}
	// A person may add a passphrase; nothing that decides how data is read may change.
	added := strings.Replace(enrolled, `"keyslots":{`, `"keyslots":{"1":`+strings.TrimPrefix(strings.TrimSuffix(section("keyslots"), "}"), `"keyslots":{"0":`)+",", 1)
	if err := read(t, image(added, added)).Verify("0", key); err != nil {
		t.Errorf("a keyslot added: %v", err)
	}
	for _, c := range [][2]string{
		{`"offset":"16777216"`, `"offset":"16781312"`}, {`"sector_size":512`, `"sector_size":4096`}, {`"iv_tweak":"0"`, `"iv_tweak":"1"`},
		{`"va3x`, `"vb3x`}, {`"XFbs`, `"XGbs`}, {`"segments":["0"],"hash":"sha256"`, `"segments":["0"],"hash":"sha512"`},
		{`"dynamic"`, `"512"`}, {`"aes-xts-plain64","sector_size"`, `"aes-cbc-plain64","sector_size"`},
	} {
		doc := strings.Replace(enrolled, c[0], c[1], 1)
		if doc == enrolled {
			t.Fatalf("%s: nothing changed", c[0])
		}
		if err := read(t, image(doc, doc)).Verify("0", key); !errors.Is(err, ErrNotEnrolled) {
			t.Errorf("%s: %v", c[1], err)
		}
	}
}

// TestDetached: what is written for cryptsetup says what was read, in both copies, and cryptsetup takes it.
func TestDetached(t *testing.T) {
	disk := image(sample, strings.Replace(sample, "luks/vm-1", "luks/evil", 1), 4, 3)
	h := read(t, disk)
	path := filepath.Join(t.TempDir(), "header")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.WriteDetached(f, bytes.NewReader(disk)), f.Close()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || len(b) != 16777216 || bytes.Contains(b, []byte("evil")) {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if bytes.Contains(b, []byte("clevis")) {
		t.Error("another program's token was written")
	}
	if got := read(t, b); got.Meta.Tokens["0"].Resource != "luks/vm-1" || got.UUID != h.UUID {
		t.Errorf("%+v", got)
	}
	if _, err := exec.LookPath("cryptsetup"); err != nil {
		t.Skipf("cryptsetup is not installed: %v", err)
	}
	out, err := exec.Command("cryptsetup", "luksDump", path).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("aes-xts-plain64")) {
		t.Errorf("cryptsetup luksDump: %v\n%s", err, out)
	}
}

func TestTruncated(t *testing.T) {
	disk := image(sample, sample)
	for n := 0; n < 2*minHeaderSize; n += 512 {
		h, err := Read(bytes.NewReader(disk[:n]))
		if err == nil && n < minHeaderSize {
			t.Errorf("%d bytes: read %+v", n, h)
		}
	}
}

// TestUUID: a disk whose header is refused is found, so that the reason is said.
func TestUUID(t *testing.T) {
	refused := image(strings.Replace(sample, `"segments"`, `"segments\u0000"`, 1), sample)
	broken := image(sample, sample)
	copy(broken, "xxxx")
	for name, disk := range map[string][]byte{"good": image(sample, sample), "refused": refused, "first copy broken": broken} {
		if got := UUID(bytes.NewReader(disk)); got != "11111111-2222-3333-4444-555555555555" {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := UUID(bytes.NewReader(make([]byte, 1<<20))); got != "" {
		t.Errorf("zeros: %q", got)
	}
}
