// Package byok opens keys that Vault's Transit engine has wrapped to a guest's
// RSA key (transit/byok-export), so that nobody between the two ever sees them.
// It is the guest's half; package vault has the broker's.
package byok

import (
	"crypto/aes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
)

// maxKey bounds the wrapped key: PKCS #8 of an RSA 4096 key has 2.4 KB.
const maxKey = 8 << 10

// errUnwrap says no more: which check failed is what a padding oracle asks for.
var errUnwrap = errors.New("byok: the blob is not a key wrapped to this RSA key")

// UnwrapBYOK opens Vault's import format, decoded from base64:
//
//	RSA-OAEP(SHA-256, no label) of an AES-256 key ‖ AES-KWP (RFC 5649) of the key under it
//
// The key is raw bytes for a symmetric Transit key, and PKCS #8 DER for others.
func UnwrapBYOK(key *rsa.PrivateKey, blob []byte) ([]byte, error) {
	if key == nil || len(blob) < key.Size()+16 || len(blob) > key.Size()+maxKey+8 {
		return nil, errUnwrap
	}
	kek, err := rsa.DecryptOAEP(sha256.New(), nil, key, blob[:key.Size()], nil)
	if err != nil || len(kek) != 32 {
		return nil, errUnwrap
	}
	defer clear(kek)
	return unwrapKWP(kek, blob[key.Size():])
}

// unwrapKWP is AES key unwrap with padding, RFC 5649 §4.2.
func unwrapKWP(kek, wrapped []byte) ([]byte, error) {
	block, err := aes.NewCipher(kek)
	if err != nil || len(wrapped) < 16 || len(wrapped)%8 != 0 {
		return nil, errUnwrap
	}
	buf := append([]byte(nil), wrapped...)
	if len(buf) == 16 {
		block.Decrypt(buf, buf)
	} else {
		unwrap3394(block.Decrypt, buf)
	}
	// The alternative initial value, §3: a constant, the length of the key, and zeros behind the key.
	body := buf[8:]
	size := binary.BigEndian.Uint32(buf[4:8])
	good := subtle.ConstantTimeCompare(buf[:4], []byte{0xa6, 0x59, 0x59, 0xa6})
	if good != 1 || uint64(size) > uint64(len(body)) || uint64(size)+8 <= uint64(len(body)) {
		clear(buf)
		return nil, errUnwrap
	}
	var padding byte
	for _, b := range body[size:] {
		padding |= b
	}
	if padding != 0 {
		clear(buf)
		return nil, errUnwrap
	}
	return body[:size:size], nil
}

// unwrap3394 is the unwrapping process of RFC 3394 §2.2.2, in place: A is the first 8 bytes of buf.
func unwrap3394(decrypt func(dst, src []byte), buf []byte) {
	n := len(buf)/8 - 1
	var b [16]byte
	copy(b[:8], buf)
	for j := 5; j >= 0; j-- {
		for i := n; i >= 1; i-- {
			t := uint64(n*j + i)
			binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])^t)
			copy(b[8:], buf[8*i:])
			decrypt(b[:], b[:])
			copy(buf[8*i:], b[8:])
		}
	}
	copy(buf, b[:8])
	clear(b[:])
}
