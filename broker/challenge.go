package broker

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// NonceSize is the length of a nonce: version, expiry, random, MAC.
const NonceSize = 1 + 8 + 16 + sha256.Size

const (
	nonceVersion = 1
	nonceLabel   = "claviger/v1/nonce"
	nonceBody    = NonceSize - sha256.Size
)

// NonceID names a nonce in the store of spent ones: its authenticated body.
type NonceID [nonceBody]byte

// Nonces issues and recognises nonces without remembering them: replicas that
// share the key recognise each other's. Used-once is the Store's business.
//
// A nonce is version (1 byte, 0x01) ‖ expiry (8 bytes, Unix milliseconds, big
// endian) ‖ random (16) ‖ HMAC-SHA256(key, "claviger/v1/nonce" ‖ broker id ‖ body) (32).
type Nonces struct {
	key      []byte
	brokerID [32]byte
	life     time.Duration
}

// NewNonces takes a 32-byte key. life is how long a nonce is honoured.
func NewNonces(key []byte, brokerID [32]byte, life time.Duration) (*Nonces, error) {
	if len(key) != 32 {
		return nil, fmt.Errorf("nonce key has %d bytes, want 32", len(key))
	}
	if life <= 0 || life > time.Hour {
		return nil, fmt.Errorf("nonce lifetime %s is outside 1ns to 1h", life)
	}
	return &Nonces{key: key, brokerID: brokerID, life: life}, nil
}

// Issue makes a nonce.
func (n *Nonces) Issue(now time.Time) (nonce []byte, expires time.Time, err error) {
	expires = now.Add(n.life)
	nonce = make([]byte, nonceBody, NonceSize)
	nonce[0] = nonceVersion
	binary.BigEndian.PutUint64(nonce[1:], uint64(expires.UnixMilli()))
	if _, err := rand.Read(nonce[9:nonceBody]); err != nil {
		return nil, time.Time{}, fmt.Errorf("read random: %w", err)
	}
	return n.mac(nonce, nonce), expires, nil
}

// Check returns the nonce's identity and expiry if it is one of ours and still honoured.
func (n *Nonces) Check(nonce []byte, now time.Time) (NonceID, time.Time, error) {
	if len(nonce) != NonceSize || nonce[0] != nonceVersion {
		return NonceID{}, time.Time{}, errors.New("not a nonce of this protocol")
	}
	body := nonce[:nonceBody]
	if !hmac.Equal(n.mac(nil, body), nonce[nonceBody:]) {
		return NonceID{}, time.Time{}, errors.New("nonce of another broker, or forged")
	}
	expires := time.UnixMilli(int64(binary.BigEndian.Uint64(body[1:])))
	if !now.Before(expires) {
		return NonceID{}, time.Time{}, fmt.Errorf("nonce expired %s ago", now.Sub(expires).Round(time.Millisecond))
	}
	// An expiry further off than we ever hand out means our clock went back: the store might have forgotten the nonce.
	if expires.Sub(now) > n.life+time.Minute {
		return NonceID{}, time.Time{}, errors.New("nonce from the future: has this broker's clock gone back?")
	}
	return NonceID(body), expires, nil
}

func (n *Nonces) mac(dst, body []byte) []byte {
	h := hmac.New(sha256.New, n.key)
	h.Write([]byte(nonceLabel))
	h.Write(n.brokerID[:])
	h.Write(body)
	return h.Sum(dst)
}
