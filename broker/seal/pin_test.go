package seal

import (
	"bytes"
	"strings"
	"testing"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwe"

	"crypto/hkdf"
	"crypto/sha256"
)

func TestPin(t *testing.T) {
	secret := bytes.Repeat([]byte{7}, 32)
	token, err := EncryptPin("disks/vm-1", secret, []byte("a key"))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := PinResource(token); err != nil || r != "disks/vm-1" {
		t.Errorf("resource %q, %v", r, err)
	}
	if got, err := DecryptPin(token+"\n", secret); err != nil || string(got) != "a key" {
		t.Errorf("got %q, %v", got, err)
	}
	// It is a JWE as others read it.
	key, err := hkdf.Key(sha256.New, secret, nil, "claviger/v1/clevis\x00disks/vm-1", 32)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := jwe.Decrypt([]byte(token), jwe.WithKey(jwa.DIRECT(), key)); err != nil || string(got) != "a key" {
		t.Errorf("jwx: got %q, %v", got, err)
	}
	if _, err := DecryptPin(token, bytes.Repeat([]byte{8}, 32)); err == nil {
		t.Error("another secret opens it")
	}
	for i := range token {
		flipped := []byte(token)
		flipped[i] ^= 1
		if got, err := DecryptPin(string(flipped), secret); err == nil {
			t.Fatalf("byte %d changed, and it still opens: %q", i, got)
		}
	}
	again, err := EncryptPin("disks/vm-1", secret, []byte("a key"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Split(again, ".")[2] == strings.Split(token, ".")[2] {
		t.Error("the same iv twice, with one key")
	}
}

// TestPinRefuses what is not exactly the JWE of this pin, with the reason; PinResource does so before a broker is asked.
func TestPinRefuses(t *testing.T) {
	secret := bytes.Repeat([]byte{7}, 32)
	token, err := EncryptPin("disks/vm-1", secret, []byte("a key"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(token, ".")
	header := func(text string) string { return encode([]byte(text)) + "." + rest }
	parts := strings.Split(token, ".")
	if r, err := PinResource(header(`{"alg":"dir","clevis":{"pin":"claviger","claviger":{"resource":"r"}},"enc":"A256GCM"}`)); err != nil || r != "r" {
		t.Fatalf("%q, %v", r, err)
	}
	const other = "not one of the pin claviger"
	for name, c := range map[string]struct{ token, want string }{
		"nothing":             {"", "compact JWE"},
		"four parts":          {"...", "compact JWE"},
		"six parts":           {token + ".x", "compact JWE"},
		"an encrypted key":    {parts[0] + ".AAAA" + rest, "compact JWE"},
		"no base64":           {parts[0] + "..?" + rest[1:], "part 2: illegal base64"},
		"a line end":          {parts[0] + "..\n" + rest[1:], "part 2: base64url with a line end"},
		"no header":           {"." + rest, "protected header: JSON"},
		"an unknown member":   {header(`{"alg":"dir","zip":"DEF"}`), `"zip" is unknown`},
		"another algorithm":   {header(`{"alg":"A256KW","clevis":{"pin":"claviger","claviger":{"resource":"r"}},"enc":"A256GCM"}`), other},
		"another cipher":      {header(`{"alg":"dir","clevis":{"pin":"claviger","claviger":{"resource":"r"}},"enc":"A128GCM"}`), other},
		"another pin":         {header(`{"alg":"dir","clevis":{"pin":"tang","claviger":{"resource":"r"}},"enc":"A256GCM"}`), other},
		"no resource":         {header(`{"alg":"dir","clevis":{"pin":"claviger","claviger":{}},"enc":"A256GCM"}`), other},
		"more than the bound": {token + strings.Repeat(" ", 4*maxPin+1-len(token)), "at most 262144"},
	} {
		if r, err := PinResource(c.token); err == nil || r != "" || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q, %v", name, r, err)
		}
		if plain, err := DecryptPin(c.token, secret); err == nil || plain != nil {
			t.Errorf("%s: opened", name)
		}
	}
	if _, err := DecryptPin(token+strings.Repeat(" ", 4*maxPin-len(token)), secret); err != nil {
		t.Errorf("as much as the bound: %v", err)
	}
	// One text has one JWE: iv and tag have their lengths, and nothing moves from one part to the next.
	dec := func(i int) []byte {
		b, err := Decode(parts[i])
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	iv, text, tag := dec(2), dec(3), dec(4)
	for name, bad := range map[string][3][]byte{
		"a short iv":              {iv[1:], text, tag},
		"a long iv":               {append(iv, 0), text, tag},
		"the tag's start in text": {iv, append(text, tag[0]), tag[1:]},
		"the text's end in tag":   {iv, text[:len(text)-1], append(text[len(text)-1:], tag...)},
	} {
		if _, err := DecryptPin(parts[0]+".."+encode(bad[0])+"."+encode(bad[1])+"."+encode(bad[2]), secret); err == nil || !strings.Contains(err.Error(), "not a JWE with A256GCM") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPinBound: what a pin encrypts, it decrypts.
func TestPinBound(t *testing.T) {
	secret, plain := bytes.Repeat([]byte{7}, 32), make([]byte, maxPin)
	token, err := EncryptPin("disks/vm-1", secret, plain)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecryptPin(token, secret); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if token, err := EncryptPin("disks/vm-1", secret, make([]byte, maxPin+1)); err == nil || token != "" {
		t.Error("takes more than the bound")
	}
}
