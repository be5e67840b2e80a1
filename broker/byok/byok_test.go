package byok

import (
	"bytes"
	"crypto/aes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"testing"
)

// The examples of RFC 5649 §6.
func TestRFC5649(t *testing.T) {
	kek := unhex(t, "5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8")
	for _, v := range []struct{ key, wrapped string }{
		{"c37b7e6492584340bed12207808941155068f738", "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a"},
		{"466f7250617369", "afbeb0f07dfbf5419200f2ccb50bb24f"},
	} {
		got, err := unwrapKWP(kek, unhex(t, v.wrapped))
		if err != nil || !bytes.Equal(got, unhex(t, v.key)) {
			t.Errorf("%s: got %x, %v", v.wrapped, got, err)
		}
		if again := wrapKWP(t, kek, unhex(t, v.key)); !bytes.Equal(again, unhex(t, v.wrapped)) {
			t.Errorf("the test's own wrapping gives %x", again)
		}
	}
}

func TestUnwrapBYOK(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1, 8, 9, 16, 32, 1200, maxKey} {
		want := make([]byte, size)
		rand.Read(want)
		got, err := UnwrapBYOK(key, wrap(t, &key.PublicKey, 32, want))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	good := wrap(t, &key.PublicKey, 32, make([]byte, 32))
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	flipped := func(i int) []byte {
		b := bytes.Clone(good)
		b[i] ^= 1
		return b
	}
	for name, blob := range map[string][]byte{
		"empty": nil, "no key": good[:256], "one byte short": good[:len(good)-1], "one block short": good[:len(good)-8],
		"one block long": append(bytes.Clone(good), make([]byte, 8)...), "RSA part changed": flipped(10), "KWP part changed": flipped(260),
		"last byte changed": flipped(len(good) - 1), "too long": wrap(t, &key.PublicKey, 32, make([]byte, maxKey+8)),
		"AES-128 in the RSA part": wrap(t, &key.PublicKey, 16, make([]byte, 32)), "to another key": wrap(t, &other.PublicKey, 32, make([]byte, 32)),
	} {
		if got, err := UnwrapBYOK(key, blob); err == nil {
			t.Errorf("%s: opened to %x", name, got)
		}
	}
	if _, err := UnwrapBYOK(nil, good); err == nil {
		t.Error("opened without a key")
	}
}

// A wrapper that lies about the length, or hides bytes in the padding, is refused.
func TestPadding(t *testing.T) {
	kek := make([]byte, 32)
	for name, plain := range map[string]string{
		"length 0":                 "a65959a600000000" + "0000000000000000" + "0000000000000000",
		"longer than the body":     "a65959a600000011" + "0102030405060708" + "0102030405060708",
		"a block shorter":          "a65959a600000008" + "0102030405060708" + "0000000000000000",
		"padding not zero":         "a65959a60000000f" + "0102030405060708" + "0102030405060701",
		"RFC 3394's initial value": "a6a6a6a6a6a6a6a6" + "0102030405060708" + "0102030405060708",
		"huge length":              "a65959a6ffffffff" + "0102030405060708" + "0102030405060708",
	} {
		if got, err := unwrapKWP(kek, wrap3394(t, kek, unhex(t, plain))); err == nil {
			t.Errorf("%s: opened to %x", name, got)
		}
	}
}

func FuzzUnwrapBYOK(f *testing.F) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.Fatal(err)
	}
	kek := make([]byte, 32)
	enc, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, &key.PublicKey, kek, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wrapKWP(f, kek, []byte("a key of some length")))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, kwp []byte) {
		got, err := UnwrapBYOK(key, append(bytes.Clone(enc), kwp...))
		if err == nil && !bytes.Equal(wrapKWP(t, kek, got), kwp) {
			t.Errorf("%x opens to %x, which wraps to something else", kwp, got)
		}
	})
}

func wrap(t testing.TB, pub *rsa.PublicKey, kekSize int, key []byte) []byte {
	t.Helper()
	kek := make([]byte, kekSize)
	rand.Read(kek)
	enc, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, pub, kek, nil)
	if err != nil {
		t.Fatal(err)
	}
	return append(enc, wrapKWP(t, kek, key)...)
}

func wrapKWP(t testing.TB, kek, key []byte) []byte {
	t.Helper()
	plain := binary.BigEndian.AppendUint32([]byte{0xa6, 0x59, 0x59, 0xa6}, uint32(len(key)))
	plain = append(plain, key...)
	for len(plain)%8 != 0 {
		plain = append(plain, 0)
	}
	return wrap3394(t, kek, plain)
}

// wrap3394 is RFC 3394 §2.2.1 in its own words, over A ‖ R1 ‖ … ‖ Rn.
func wrap3394(t testing.TB, kek, plain []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(kek)
	if err != nil {
		t.Fatal(err)
	}
	out := bytes.Clone(plain)
	if len(out) == 16 {
		block.Encrypt(out, out)
		return out
	}
	a, n := bytes.Clone(out[:8]), len(out)/8-1
	for j := range 6 {
		for i := 1; i <= n; i++ {
			b := append(bytes.Clone(a), out[8*i:8*i+8]...)
			block.Encrypt(b, b)
			binary.BigEndian.PutUint64(a, binary.BigEndian.Uint64(b[:8])^uint64(n*j+i))
			copy(out[8*i:], b[8:])
		}
	}
	copy(out, a)
	return out
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
