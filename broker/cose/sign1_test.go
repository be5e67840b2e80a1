package cose

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

func encode(t testing.TB, v any) []byte {
	t.Helper()
	b, err := cbor.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// envelope is a COSE_Sign1 by hand, from RFC 9052 and without the code under test.
type envelope struct {
	protected   []byte
	unprotected any
	payload     any
	tag         []byte
}

func (e envelope) sign(t testing.TB, key crypto.Signer, h crypto.Hash) []byte {
	t.Helper()
	payload, _ := e.payload.([]byte)
	digest := h.New()
	digest.Write(encode(t, []any{"Signature1", e.protected, []byte{}, payload}))
	var sig []byte
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, k, digest.Sum(nil))
		if err != nil {
			t.Fatal(err)
		}
		sig = make([]byte, 2*((k.Params().BitSize+7)/8))
		r.FillBytes(sig[:len(sig)/2])
		s.FillBytes(sig[len(sig)/2:])
	case *rsa.PrivateKey:
		var err error
		if sig, err = rsa.SignPSS(rand.Reader, k, h, digest.Sum(nil), &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}); err != nil {
			t.Fatal(err)
		}
	}
	return append(bytes.Clone(e.tag), encode(t, []any{e.protected, e.unprotected, e.payload, sig})...)
}

func with(t testing.TB, alg Algorithm) envelope {
	return envelope{protected: encode(t, map[int]any{1: int64(alg)}), unprotected: map[int]any{}, payload: []byte("payload"), tag: []byte{tagSign1}}
}

// TestAlgorithms: each with its own kind of key, and with no other.
func TestAlgorithms(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1536)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]crypto.Signer{
		"P-256": ecKey(t, elliptic.P256()), "P-384": ecKey(t, elliptic.P384()), "P-521": ecKey(t, elliptic.P521()), "RSA 2048": rsaKey, "RSA 1536": small,
	}
	for alg, own := range map[Algorithm]string{ES256: "P-256", ES384: "P-384", ES512: "P-521", PS256: "RSA 2048", PS384: "RSA 2048", PS512: "RSA 2048"} {
		for name, key := range keys {
			s, err := Parse(with(t, alg).sign(t, key, hashes[alg]))
			if err != nil {
				t.Fatalf("%v: %v", alg, err)
			}
			err = s.Verify(key.Public())
			if name == own && err != nil {
				t.Errorf("%v by %s: %v", alg, name, err)
			}
			if name != own && !errors.Is(err, ErrKey) {
				t.Errorf("%v by %s: got %v, want %v", alg, name, err, ErrKey)
			}
			if s.Algorithm != alg || string(s.Payload) != "payload" {
				t.Errorf("read %v, %q", s.Algorithm, s.Payload)
			}
		}
	}
	if err := (Sign1{Algorithm: ES256}).Verify(nil); !errors.Is(err, ErrKey) {
		t.Errorf("no key: %v", err)
	}
}

// TestRefused: what is no COSE_Sign1, or leaves something to choose for who did not sign it.
func TestRefused(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	for name, tc := range map[string]struct {
		change      func(*envelope)
		unsupported bool
	}{
		"Mac0":                            {func(e *envelope) { e.tag = []byte{tagMac0} }, true},
		"another tag":                     {func(e *envelope) { e.tag = []byte{0xd3} }, false},
		"two tags":                        {func(e *envelope) { e.tag = []byte{tagSign1, tagSign1} }, false},
		"CWT tag":                         {func(e *envelope) { e.tag = []byte{0xd8, 61, tagSign1} }, false},
		"EdDSA":                           {func(e *envelope) { e.protected = encode(t, map[int]any{1: -8}) }, true},
		"RS256":                           {func(e *envelope) { e.protected = encode(t, map[int]any{1: -257}) }, true},
		"algorithm by name":               {func(e *envelope) { e.protected = encode(t, map[int]any{1: "ES256"}) }, true},
		"no algorithm":                    {func(e *envelope) { e.protected = encode(t, map[int]any{4: []byte("kid")}) }, false},
		"empty protected header":          {func(e *envelope) { e.protected = []byte{} }, false},
		"algorithm not protected":         {func(e *envelope) { e.protected, e.unprotected = []byte{0xa0}, map[int]any{1: -7} }, false},
		"algorithm twice":                 {func(e *envelope) { e.unprotected = map[int]any{1: -7} }, false},
		"algorithm twice in one map":      {func(e *envelope) { e.protected = []byte{0xa2, 1, 0x26, 1, 0x38, 0x22} }, false},
		"trailing in the protected":       {func(e *envelope) { e.protected = append(e.protected, 0) }, false},
		"indefinite protected header":     {func(e *envelope) { e.protected = []byte{0xbf, 1, 0x26, 0xff} }, false},
		"critical parameters":             {func(e *envelope) { e.protected = encode(t, map[int]any{1: -7, 2: []int{4}, 4: []byte("kid")}) }, true},
		"null for the unprotected header": {func(e *envelope) { e.unprotected = nil }, false},
		"a list for a header":             {func(e *envelope) { e.unprotected = []int{} }, false},
		"critical parameters unprotected": {func(e *envelope) { e.unprotected = map[int]any{2: []int{4}} }, false},
		"key id twice": {func(e *envelope) {
			e.protected, e.unprotected = encode(t, map[int]any{1: -7, 4: []byte("a")}), map[int]any{4: []byte("b")}
		}, false},
		"detached payload":           {func(e *envelope) { e.payload = nil }, false},
		"empty payload":              {func(e *envelope) { e.payload = []byte{} }, false},
		"payload of numbers":         {func(e *envelope) { e.payload = []int{1, 2, 3} }, false},
		"payload of text":            {func(e *envelope) { e.payload = "payload" }, false},
		"unprotected is an array":    {func(e *envelope) { e.unprotected = []int{} }, false},
		"deep unprotected header":    {func(e *envelope) { e.unprotected = map[int]any{4: []any{[]any{[]any{[]any{[]any{}}}}}} }, false},
		"large unprotected header":   {func(e *envelope) { e.unprotected = map[int]any{4: make([]int, maxItems+1)} }, false},
		"tag in the unprotected one": {func(e *envelope) { e.unprotected = map[int]any{4: cbor.Tag{Number: 1, Content: 1}} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			e := with(t, ES256)
			tc.change(&e)
			_, err := Parse(e.sign(t, key, crypto.SHA256))
			if err == nil {
				t.Fatal("accepted")
			}
			if errors.Is(err, ErrUnsupported) != tc.unsupported {
				t.Errorf("unsupported: %v, want %v (%v)", !tc.unsupported, tc.unsupported, err)
			}
		})
	}
	for _, b := range [][]byte{nil, {}, {tagSign1}, {0x80}, {0x83, 0x40, 0xa0, 0x40}, {0x85, 0x40, 0xa0, 0x40, 0x40, 0x40}, {0x9f, 0x40, 0xa0, 0x40, 0x40, 0xff}, {0xf6}} {
		if _, err := Parse(b); err == nil {
			t.Errorf("%x: accepted", b)
		}
	}
}

// TestTaken: what RFC 9052 allows beside the bare minimum.
func TestTaken(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	for name, change := range map[string]func(*envelope){
		"no tag":             func(e *envelope) { e.tag = nil },
		"key id":             func(e *envelope) { e.unprotected = map[int]any{4: []byte("kid")} },
		"protected key id":   func(e *envelope) { e.protected = encode(t, map[any]any{1: -7, 4: []byte("kid"), "x": 1}) },
		"algorithm at width": func(e *envelope) { e.protected = []byte{0xa1, 1, 0x38, 0x06} },
		"long payload":       func(e *envelope) { e.payload = make([]byte, 1<<16) },
	} {
		e := with(t, ES256)
		change(&e)
		s, err := Parse(e.sign(t, key, crypto.SHA256))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := s.Verify(key.Public()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEveryBit: none that is flipped in the token leaves it valid, and no cut.
func TestEveryBit(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	b := with(t, ES256).sign(t, key, crypto.SHA256)
	verifies := func(b []byte) bool {
		s, err := Parse(b)
		return err == nil && s.Verify(key.Public()) == nil
	}
	if !verifies(b) {
		t.Fatal("the token does not verify")
	}
	for bit := range 8 * len(b) {
		b[bit/8] ^= 1 << (bit % 8)
		if verifies(b) {
			t.Errorf("bit %d: accepted", bit)
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
	for n := range b {
		if verifies(b[:n]) {
			t.Errorf("cut to %d bytes: accepted", n)
		}
	}
	if verifies(append(b, 0)) {
		t.Error("a byte behind it: accepted")
	}
	if verifies(with(t, ES256).sign(t, ecKey(t, elliptic.P256()), crypto.SHA256)) {
		t.Error("another key: accepted")
	}
	zeros := encode(t, []any{with(t, ES256).protected, map[int]any{}, []byte("payload"), make([]byte, 64)})
	if verifies(zeros) {
		t.Error("a signature of zeros: accepted")
	}
}

func FuzzParse(f *testing.F) {
	key := ecKey(f, elliptic.P256())
	f.Add(with(f, ES256).sign(f, key, crypto.SHA256))
	f.Add(with(f, ES384).sign(f, ecKey(f, elliptic.P384()), crypto.SHA384))
	f.Add([]byte{tagMac0, 0x84, 0x43, 0xa1, 1, 5, 0xa0, 0x41, 0, 0x41, 0})
	f.Add([]byte(strings.Repeat("\x81", 100)))
	files, _ := filepath.Glob(filepath.Join("..", "..", "..", "shared", "evidence", "psa", "*", "*", "*.bin")) // no matches where absent
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Parse(b)
		if err != nil {
			return
		}
		if s.Verify(ecKey(t, elliptic.P256()).Public()) == nil {
			t.Error("verifies under a key that was made just now")
		}
	})
}
