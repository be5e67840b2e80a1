package results

import (
	"crypto/x509"
	"encoding/json"
	"time"

	"github.com/claviger/claviger/broker/certs"
)

// Chained is what becomes of a token whose header has this JWK, where these roots are pinned.
func Chained(roots []*x509.Certificate, alg string, jwk []byte, now time.Time) error {
	i := &issuer{roots: certs.NewAuthorities(roots, nil)}
	h := header{Algorithm: alg, key: jwk}
	if err := json.Unmarshal(jwk, &h.Key); err != nil {
		return err
	}
	_, _, err := i.key(h, now)
	return err
}
