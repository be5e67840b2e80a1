package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
)

// PinName is the name of the clevis pin.
const PinName = "claviger"

const pinLabel = "claviger/v1/clevis"

// pinHeader is the protected header of a pin's JWE: clevis finds the pin by its
// "clevis" member, and the pin the secret.
type pinHeader struct {
	Alg    string    `json:"alg"` // "dir": the key is derived from the secret
	Clevis pinClevis `json:"clevis"`
	Enc    string    `json:"enc"`
}

type pinClevis struct {
	Pin      string    `json:"pin"`
	Claviger pinConfig `json:"claviger"`
}

type pinConfig struct {
	Resource string `json:"resource"`
}

// maxPin bounds what a pin encrypts: clevis gives it keys.
const maxPin = 64 << 10

// EncryptPin encrypts plain under a key derived from a secret of a broker, as a
// compact JWE (RFC 7516, alg dir, A256GCM).
func EncryptPin(resource string, secret, plain []byte) (string, error) {
	if len(plain) > maxPin {
		return "", fmt.Errorf("plaintext of %d bytes, at most %d", len(plain), maxPin)
	}
	header, err := json.Marshal(pinHeader{Alg: "dir", Enc: "A256GCM", Clevis: pinClevis{PinName, pinConfig{resource}}})
	if err != nil {
		return "", fmt.Errorf("encode header: %w", err)
	}
	gcm, err := pinCipher(secret, resource)
	if err != nil {
		return "", err
	}
	iv := make([]byte, gcm.NonceSize())
	rand.Read(iv)
	protected := encode(header)
	sealed := gcm.Seal(nil, iv, plain, []byte(protected))
	tag := len(sealed) - gcm.Overhead()
	return protected + ".." + encode(iv) + "." + encode(sealed[:tag]) + "." + encode(sealed[tag:]), nil
}

// PinResource is the secret that a pin's JWE wants. Nothing of it is proven before DecryptPin.
func PinResource(token string) (string, error) {
	parts, err := pinParts(token)
	if err != nil {
		return "", err
	}
	var h pinHeader
	dec := json.NewDecoder(bytes.NewReader(parts[0]))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&h); err != nil {
		return "", fmt.Errorf("protected header: %w", err)
	}
	if h.Alg != "dir" || h.Enc != "A256GCM" || h.Clevis.Pin != PinName || h.Clevis.Claviger.Resource == "" {
		return "", errors.New("protected header: not one of the pin claviger")
	}
	return h.Clevis.Claviger.Resource, nil
}

// DecryptPin opens what EncryptPin made. The caller wipes the result.
func DecryptPin(token string, secret []byte) ([]byte, error) {
	resource, err := PinResource(token)
	if err != nil {
		return nil, err
	}
	parts, err := pinParts(token)
	if err != nil {
		return nil, err
	}
	gcm, err := pinCipher(secret, resource)
	if err != nil {
		return nil, err
	}
	if len(parts[2]) != gcm.NonceSize() || len(parts[4]) != gcm.Overhead() {
		return nil, errors.New("not a JWE with A256GCM")
	}
	plain, err := gcm.Open(nil, parts[2], append(bytes.Clone(parts[3]), parts[4]...), []byte(encode(parts[0])))
	if err != nil {
		return nil, errors.New("decrypt: the secret is another one, or the JWE was changed")
	}
	return plain, nil
}

func pinParts(token string) ([5][]byte, error) {
	var out [5][]byte
	texts := bytes.Split(bytes.TrimSpace([]byte(token)), []byte("."))
	if len(token) > 4*maxPin || len(texts) != 5 || len(texts[1]) != 0 {
		return out, errors.New("not a compact JWE with a direct key")
	}
	for i, t := range texts {
		var err error
		if out[i], err = Decode(string(t)); err != nil {
			return out, fmt.Errorf("part %d: %w", i, err)
		}
	}
	return out, nil
}

func pinCipher(secret []byte, resource string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, secret, nil, pinLabel+"\x00"+resource, 32)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	return cipher.NewGCM(block)
}
