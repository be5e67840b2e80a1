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
	for _, bad := range []string{"", "a.b", "....", strings.Repeat("A", 5<<16), "e30....", token + ".x"} {
		if _, err := DecryptPin(bad, secret); err == nil {
			t.Errorf("%.20q: opened", bad)
		}
	}
}
