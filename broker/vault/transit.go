package vault

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/certs"
)

const (
	transitMount  = "transit"
	maxCiphertext = 128 << 10
	// exportPrefix begins the names of the keys that this package imports and deletes again.
	exportPrefix = "claviger-byok-"
)

var ciphertext = regexp.MustCompile(`^vault:v[1-9][0-9]{0,9}:[A-Za-z0-9+/]+={0,2}$`)

// fetchDecrypt opens a ciphertext that the guest brought.
func (s *Source) fetchDecrypt(ctx context.Context, e broker.CatalogEntry, input []byte) (broker.Secret, error) {
	mount := cmp.Or(e.Mount, transitMount)
	if len(input) > maxCiphertext || !ciphertext.Match(input) {
		return broker.Secret{}, fmt.Errorf("vault: %s/%s: %w: want vault:vN:<base64> of at most %d bytes", mount, e.Key, broker.ErrInput, maxCiphertext)
	}
	body := map[string]any{"ciphertext": string(input)}
	if c := e.Options["context"]; c != "" {
		body["context"] = base64.StdEncoding.EncodeToString([]byte(c))
	}
	r := write(mount, "decrypt/"+e.Key, body)
	r.guest = true
	got, err := s.call(ctx, r)
	switch {
	case err != nil && noKey(err):
		return broker.Secret{}, fmt.Errorf("%w: %w", broker.ErrNoSecret, err)
	case status(err) == http.StatusBadRequest:
		return broker.Secret{}, fmt.Errorf("%w: %w", broker.ErrInput, err)
	case err != nil:
		return broker.Secret{}, err
	case got == nil:
		return broker.Secret{}, fmt.Errorf("vault: %s/decrypt/%s: %w", mount, e.Key, broker.ErrNoSecret)
	}
	text, _ := got.Data["plaintext"].(string)
	value, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return broker.Secret{}, fmt.Errorf("vault: %s/decrypt/%s: the answer is not base64", mount, e.Key)
	}
	return broker.Secret{Value: value}, nil
}

// fetchDatakey makes a new data key, plain and wrapped under the Transit key.
func (s *Source) fetchDatakey(ctx context.Context, e broker.CatalogEntry) (broker.Secret, error) {
	mount := cmp.Or(e.Mount, transitMount)
	body := map[string]any{}
	if text := e.Options["bits"]; text != "" {
		bits, err := strconv.Atoi(text)
		if err != nil || bits != 128 && bits != 256 && bits != 512 {
			return broker.Secret{}, fmt.Errorf("vault: %s: options: bits: %q is not 128, 256 or 512", e.Key, text)
		}
		body["bits"] = bits
	}
	// Vault makes a missing key by itself where the policy lets it; ours (deploy/vault) does not.
	got, err := s.call(ctx, write(mount, "datakey/plaintext/"+e.Key, body))
	if err != nil && noKey(err) || err == nil && got == nil {
		return broker.Secret{}, fmt.Errorf("vault: %s/%s: %w", mount, e.Key, errors.Join(broker.ErrNoSecret, err))
	}
	if err != nil {
		return broker.Secret{}, err
	}
	plain, _ := got.Data["plaintext"].(string)
	wrapped, _ := got.Data["ciphertext"].(string)
	if plain == "" || wrapped == "" {
		return broker.Secret{}, fmt.Errorf("vault: %s/datakey/%s: the answer has no key", mount, e.Key)
	}
	value, err := canonical(struct {
		Plaintext  string `json:"plaintext"`
		Ciphertext string `json:"ciphertext"`
	}{plain, wrapped})
	return broker.Secret{Value: value, ContentType: "application/json"}, err
}

// fetchExport has Vault wrap the newest version of an exportable key to the
// guest's RSA key: it is imported under a name of its own for as long as that
// takes. Package byok opens the result.
func (s *Source) fetchExport(ctx context.Context, e broker.CatalogEntry, spki []byte) (_ broker.Secret, err error) {
	mount := cmp.Or(e.Mount, transitMount)
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return broker.Secret{}, fmt.Errorf("vault: %s: %w: recipient key: %w", e.Key, broker.ErrInput, err)
	}
	key, ok := pub.(*rsa.PublicKey)
	if !ok || key.N.BitLen() != 3072 && key.N.BitLen() != 4096 {
		return broker.Secret{}, fmt.Errorf("vault: %s: %w: recipient key: want RSA of 3072 or 4096 bits", e.Key, broker.ErrInput)
	}
	if err := certs.CheckKey(key, certs.RSA); err != nil {
		return broker.Secret{}, fmt.Errorf("vault: %s: %w: recipient key: %w", e.Key, broker.ErrInput, err)
	}
	name := exportPrefix + rand.Text()
	// Vault re-encodes the key: of two encodings of one key it keeps the key.
	imported := write(mount, "keys/"+name+"/import", map[string]any{
		"type":       fmt.Sprintf("rsa-%d", key.N.BitLen()),
		"public_key": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})),
	})
	export := read(mount, "byok-export/"+name+"/"+e.Key)
	imported.guest, export.guest = true, true
	imported.what, export.what = mount+"/byok-export/"+e.Key, mount+"/byok-export/"+e.Key // the guest's key has a name that nobody uses again
	_, err = s.call(ctx, imported)
	// After a timeout, or a failure, it may be there as well.
	if err == nil || !errors.Is(err, errNotAsked) && (status(err) == 0 || status(err) >= 500) {
		defer func() {
			_ = s.endNow(ctx, leftover{"a guest's public key, " + mount + "/keys/" + name, func(ctx context.Context) error { return s.deleteKey(ctx, mount, name) }}) // logged, and tried again
		}()
	}
	if err != nil {
		return broker.Secret{}, fmt.Errorf("import the guest's key: %w", err)
	}
	got, err := s.call(ctx, export)
	switch {
	case err != nil && says(err, "no such source key") || err == nil && got == nil:
		return broker.Secret{}, fmt.Errorf("vault: %s/%s: %w", mount, e.Key, errors.Join(broker.ErrNoSecret, err))
	case err != nil:
		return broker.Secret{}, err
	}
	keys, _ := got.Data["keys"].(map[string]any)
	newest := 0
	for v := range keys {
		if n, err := strconv.Atoi(v); err == nil {
			newest = max(newest, n)
		}
	}
	text, _ := keys[strconv.Itoa(newest)].(string)
	value, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(value) == 0 {
		return broker.Secret{}, fmt.Errorf("vault: %s/byok-export/%s: the answer has no key", mount, e.Key)
	}
	return broker.Secret{Value: value, Version: strconv.Itoa(newest), ContentType: "application/vnd.claviger.byok"}, nil
}

// deleteKey deletes a key that this package imported. One that is not there is no error.
func (s *Source) deleteKey(ctx context.Context, mount, name string) error {
	for _, r := range []request{
		write(mount, "keys/"+name+"/config", map[string]any{"deletion_allowed": true}),
		{method: http.MethodDelete, mount: mount, path: "keys/" + name},
	} {
		r.cleanup = true
		if _, err := s.call(ctx, r); err != nil {
			if noKey(err) || status(err) == http.StatusNotFound {
				return nil
			}
			return err
		}
	}
	return nil
}

// noKey recognises Vault's answers for a Transit key that it does not have.
func noKey(err error) bool {
	return says(err, "encryption key not found") || says(err, "no existing key named")
}
