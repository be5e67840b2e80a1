package seal

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/claviger/claviger/broker/strictjson"
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
	return compactJWE(gcm, header, nil, plain), nil
}

// PinResource is the secret that a pin's JWE wants. Nothing of it is proven before DecryptPin.
func PinResource(token string) (string, error) {
	resource, _, err := readPin(token)
	return resource, err
}

// DecryptPin opens what EncryptPin made. The caller wipes the result.
func DecryptPin(token string, secret []byte) ([]byte, error) {
	resource, parts, err := readPin(token)
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
	plain, err := gcm.Open(nil, parts[2], slices.Concat(parts[3], parts[4]), []byte(encode(parts[0])))
	if err != nil {
		return nil, errors.New("decrypt: the secret is another one, or the JWE was changed")
	}
	return plain, nil
}

// readPin returns the secret that a pin's JWE wants, and the JWE's parts.
func readPin(token string) (string, [][]byte, error) {
	if len(token) > 4*maxPin {
		return "", nil, fmt.Errorf("JWE of %d bytes, at most %d", len(token), 4*maxPin)
	}
	texts := strings.Split(strings.TrimSpace(token), ".")
	if len(texts) != 5 || texts[1] != "" {
		return "", nil, errors.New("not a compact JWE with a direct key")
	}
	var parts [][]byte
	for i, t := range texts {
		part, err := Decode(t)
		if err != nil {
			return "", nil, fmt.Errorf("part %d: %w", i, err)
		}
		parts = append(parts, part)
	}
	var h pinHeader
	if err := strictjson.UnmarshalKnown(parts[0], &h); err != nil {
		return "", nil, fmt.Errorf("protected header: %w", err)
	}
	if h.Alg != "dir" || h.Enc != "A256GCM" || h.Clevis.Pin != PinName || h.Clevis.Claviger.Resource == "" {
		return "", nil, errors.New("protected header: not one of the pin claviger")
	}
	return h.Clevis.Claviger.Resource, parts, nil
}

func pinCipher(secret []byte, resource string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, secret, nil, pinLabel+"\x00"+resource, 32)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	defer clear(key)
	return newGCM(key)
}
