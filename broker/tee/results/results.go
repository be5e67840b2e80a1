// Package results appraises what other verifiers say of a guest: tokens of an
// EAR verifier (Veraison, Confidential Containers), Microsoft Azure Attestation,
// Intel Trust Authority and Google Confidential Space. A token is no hardware
// evidence: whoever holds its issuer's key can say anything. It is believed only
// of issuers that the operator configured, with keys from the operator's files:
// nothing that a token names is ever fetched, and no network is used.
//
// Sources: RFC 7515, 7519 and 8725 for tokens; draft-ietf-rats-ear-03 and AR4SI;
// the claims' references of Microsoft, Intel and Google.
package results

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lestrrat-go/jwx/v3/jws/jwsbb"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/certs"
	"github.com/claviger/claviger/broker/dcap"
	"github.com/claviger/claviger/broker/memo"
)

// Dialect says which vendor's claims a token has.
type Dialect string

// Dialects.
const (
	EAR    Dialect = "ear"    // draft-ietf-rats-ear: Veraison, Confidential Containers, Claviger
	MAA    Dialect = "maa"    // Microsoft Azure Attestation
	ITA    Dialect = "ita"    // Intel Trust Authority
	Google Dialect = "google" // Google Cloud Attestation: Confidential Space
)

// DefaultMaxAge is how old a token may be if its issuer's configuration does not say.
const DefaultMaxAge = 5 * time.Minute

// leeway is for clocks that differ.
const leeway = 30 * time.Second

// Issuer is somebody whose tokens are believed.
type Issuer struct {
	Name    string // the operator's word for it, which policies use
	Dialect Dialect
	// URL is the claim iss, exactly. Only EAR tokens may come without one; then it is empty.
	URL string
	// Audience must be among the claim aud, if set.
	Audience string
	// Keys are for tokens by kid, Roots for those that bring their chain (x5c).
	Keys  []PinnedKey
	Roots []*x509.Certificate
	// MaxAge of a token since iat; 0 means DefaultMaxAge.
	MaxAge time.Duration
	// NonceAttested says that this EAR verifier compares eat_nonce with the
	// evidence, as Veraison does. One that only repeats it would let everybody
	// put his own key to somebody else's evidence.
	NonceAttested bool
}

// Config of a Verifier. Without issuers nothing is believed.
type Config struct{ Issuers []Issuer }

// issuer is an Issuer in use.
type issuer struct {
	Issuer
	keys   []PinnedKey
	roots  *certs.Authorities // nil: none
	chains memo.Memo[*chain]
}

// Verifier appraises evidence of type "attestation-result". It makes these
// checks, in this order; the names are those of Claims.Checks.
//
//  1. result.format: a compact JWS in its one spelling, whose parts are bounded JSON.
//  2. result.issuer: iss is a configured issuer's.
//  3. result.header: an asymmetric algorithm; no crit; a type of token that says so.
//  4. result.key: by kid from the issuer's pinned keys, or by a chain to its pinned roots.
//  5. result.signature: by that key.
//  6. result.validity: iat, nbf, exp, and the age that the configuration allows.
//  7. result.audience: aud is the configured one, if one is.
//  8. result.claims: the dialect's claims are those of an appraisal.
//  9. result.binding: the digest of this request stands where the dialect has what the guest attested.
type Verifier struct {
	issuers map[string]*issuer // by URL
}

// New makes a Verifier.
func New(cfg Config) (*Verifier, error) {
	v := &Verifier{issuers: map[string]*issuer{}}
	names := map[string]bool{}
	for n, i := range cfg.Issuers {
		fail := func(field, format string, args ...any) error {
			return fmt.Errorf("results: issuer %d (%s): %s: %w", n, i.Name, field, fmt.Errorf(format, args...))
		}
		switch {
		case i.Name == "" || names[i.Name]:
			return nil, fail("name", "missing, or used twice")
		case dialects[i.Dialect] == nil:
			return nil, fail("dialect", "%q: want ear, maa, ita or google", i.Dialect)
		case i.URL == "" && i.Dialect != EAR:
			return nil, fail("issuer", "missing")
		case v.issuers[i.URL] != nil:
			return nil, fail("issuer", "%q is %s's already", i.URL, v.issuers[i.URL].Name)
		case len(i.Keys) == 0 && len(i.Roots) == 0:
			return nil, fail("jwks", "neither keys nor roots")
		case i.MaxAge < 0:
			return nil, fail("max_age", "%s is negative", i.MaxAge)
		case i.NonceAttested && i.Dialect != EAR:
			return nil, fail("nonce_attested", "is for the dialect ear")
		}
		if i.MaxAge == 0 {
			i.MaxAge = DefaultMaxAge
		}
		names[i.Name] = true
		in := &issuer{Issuer: i, keys: i.Keys}
		if len(i.Roots) > 0 {
			in.roots = certs.NewAuthorities(i.Roots, nil)
		}
		v.issuers[i.URL] = in
	}
	return v, nil
}

var _ attest.Verifier = (*Verifier)(nil)

// Type is "attestation-result".
func (v *Verifier) Type() attest.Type { return attest.TypeResult }

// Verify implements attest.Verifier. It needs no collateral.
func (v *Verifier) Verify(ctx context.Context, ev attest.Evidence, b attest.Binding, _ attest.Collateral, now time.Time) (attest.Claims, error) {
	return dcap.Contain(ctx, "result", attest.TypeResult, func(t *dcap.Trail) (attest.Claims, error) {
		if err := t.Clock(now); err != nil {
			return attest.Claims{}, err
		}
		return v.verify(t, ev, b, now)
	})
}

func (v *Verifier) verify(t *dcap.Trail, ev attest.Evidence, b attest.Binding, now time.Time) (attest.Claims, error) {
	var none attest.Claims
	if ev.Type != attest.TypeResult {
		return none, t.Fail("format", attest.ReasonUnsupported, "evidence of type %q", ev.Type)
	}
	if len(ev.Report) > attest.MaxReportSize || len(ev.Endorsements) > 0 || len(ev.EventLog) > 0 {
		return none, t.Fail("format", attest.ReasonMalformed, "a token of %d bytes; want at most %d, and nothing beside it", len(ev.Report), attest.MaxReportSize)
	}
	tok, err := parse(ev.Report)
	if err != nil {
		return none, t.Fail("format", attest.ReasonMalformed, "%w", err)
	}
	t.Pass("format", "token of %d bytes", len(ev.Report))

	// Somebody whom the operator does not know, and who can sign as well as others.
	url := tok.claims.text("iss")
	i := v.issuers[url]
	if _, stated := tok.claims["iss"]; stated && url == "" {
		i = nil // a number, or "": not the same as none
	}
	switch {
	case len(v.issuers) == 0:
		return none, t.Fail("issuer", attest.ReasonChain, "this broker believes no other verifier (evidence.results): not verified, no keys; the token is of %q", url)
	case i == nil:
		return none, t.Fail("issuer", attest.ReasonChain, "issuer %q is not configured", url)
	}
	t.Pass("issuer", "%s: %q", i.Name, url)

	if err := tok.header.check(); err != nil {
		return none, t.Fail("header", attest.ReasonUnsupported, "%w", err)
	}
	t.Pass("header", "%s", tok.header.Algorithm)

	key, by, err := i.key(tok.header, now)
	if err != nil {
		return none, t.Fail("key", keyReason(err), "%w", err)
	}
	t.Pass("key", "%s", by)

	// Claims that the issuer did not make.
	if err := jwsbb.Verify(key, tok.header.Algorithm, tok.signed, tok.signature); err != nil {
		return none, t.Fail("signature", attest.ReasonSignature, "the signature does not verify: %w", err)
	}
	t.Pass("signature", "by %s", i.Name)

	// A token recorded earlier; the binding alone would do, but not if a clock or a nonce's life is set wrong.
	issued, expires, err := lifetime(tok.claims, i.MaxAge, now)
	if err != nil {
		return none, t.Fail("validity", attest.ReasonValidity, "%w", err)
	}
	t.Pass("validity", "issued %s", issued.Format(time.RFC3339))

	// A token that another relying party got, and hands on.
	audience := append([]string{}, tok.claims.strings("aud")...)
	switch {
	case i.Audience == "":
		t.Skip("audience", "none is configured")
	case !slices.Contains(audience, i.Audience):
		return none, t.Fail("audience", attest.ReasonMismatch, "the token is for %q, not %q", audience, i.Audience)
	default:
		t.Pass("audience", "%s", i.Audience)
	}

	a, err := dialects[i.Dialect](tok.claims, i.Issuer)
	if err != nil {
		return none, t.Fail("claims", attest.ReasonMalformed, "%s: %w", i.Dialect, err)
	}
	t.Pass("claims", "%s of %s", i.Dialect, a.hardware)

	// Somebody else's token, or one of our own made for another request.
	where, data, bound, err := a.bind(b)
	if err != nil {
		return none, t.Fail("binding", attest.ReasonBinding, "%w", err)
	}
	if bound {
		t.Pass("binding", "%s is the digest of this request", where)
	} else {
		t.Skip("binding", "no binding was asked for")
	}
	kid := ""
	if tok.header.KeyID != nil {
		kid = *tok.header.KeyID
	}
	return attest.Claims{
		Type: attest.TypeResult, HardwareModel: a.hardware, Bound: bound,
		Debuggable: a.debuggable != no, Migratable: a.migratable != no, Unstated: a.unstated(), BoundToCPUTEE: a.cpuTEE && a.migratable != yes, Simulated: a.simulated, ChipID: a.chipID, Identities: a.identities, TCB: a.tcb,
		Measurements: a.measurements, HostData: a.hostData, ReportData: hex.EncodeToString(data),
		Collateral: attest.CollateralState{State: attest.CollateralFresh},
		Result: &Claims{
			VerifiedBy: i.Name, Dialect: i.Dialect, Issuer: url, Audience: audience, KeyID: kid, Issued: issued, Expires: expires,
			Bound: where, Status: a.status, Submods: a.submods, Token: tok.claims,
		},
	}, nil
}

// unstated are the claims of which the token says nothing.
func (a appraisal) unstated() (names []string) {
	if a.debuggable == unstated {
		names = append(names, "debuggable")
	}
	if a.migratable == unstated {
		names = append(names, "migratable")
	}
	if a.tcb.Status == attest.TCBUnstated {
		names = append(names, "tcb.status")
	}
	return names
}

// Claims say who made a result, and what it says under the vendor's names.
type Claims struct {
	VerifiedBy string     `json:"verified_by"` // the name of the issuer in the broker's configuration
	Dialect    Dialect    `json:"dialect"`
	Issuer     string     `json:"issuer"`
	Audience   []string   `json:"audience"`
	KeyID      string     `json:"key_id"`
	Issued     time.Time  `json:"issued"`
	Expires    *time.Time `json:"expires,omitempty"`
	// Bound is the claim that the binding was compared with, as a path.
	Bound string `json:"bound"`
	// Status is EAR's, of the worst submodule: "affirming", "warning", "contraindicated" or "none"; empty for the others.
	Status  string            `json:"status"`
	Submods map[string]Submod `json:"submods,omitempty"` // of EAR
	// Token holds all claims. Integers past 2^53 are strings.
	Token map[string]any `json:"token"`
}

// check refuses what this reader would have to understand, and does not.
func (h header) check() error {
	switch {
	case h.Algorithm == "":
		return errors.New("no alg")
	case algorithms[h.Algorithm] == "": // none, and HMAC under a public key
		return fmt.Errorf("alg %q is not accepted", h.Algorithm)
	case h.Critical != nil:
		return fmt.Errorf("crit %s: nothing critical is known", h.Critical)
	}
	// A key may sign other kinds of statements (RFC 8725 §3.11).
	switch strings.TrimPrefix(strings.ToLower(h.Type), "application/") {
	case "", "jwt", "eat+jwt":
		return nil
	}
	return fmt.Errorf("typ %q is no attestation result", h.Type)
}

// key returns the key of a token, and how it was found. A chain counts only
// where the operator pinned roots: elsewhere it is decoration.
func (i *issuer) key(h header, now time.Time) (key crypto.PublicKey, by string, err error) {
	if i.roots == nil || (len(i.keys) > 0 && len(h.x5c()) == 0) {
		key, err := i.pinned(h)
		if err != nil {
			return nil, "", err
		}
		return key, "a pinned key", nil
	}
	if len(h.x5c()) == 0 {
		return nil, "", errors.New("the token brings no chain (x5c) to the pinned roots")
	}
	c, err := i.chained(h, now)
	if err != nil {
		return nil, "", err
	}
	return c.key, "of " + c.subject + ", to a pinned root", nil
}

func keyReason(err error) attest.Reason {
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return attest.ReasonValidity
	}
	return attest.ReasonChain
}

// lifetime checks iat, nbf and exp (RFC 7519 §4.1). Only iat must be there: an
// EAR has no other, and its age is bounded all the same.
func lifetime(o object, maxAge time.Duration, now time.Time) (issued time.Time, expires *time.Time, err error) {
	at := func(name string) (*time.Time, error) {
		s, ok, err := o.time(name)
		if err != nil || !ok {
			return nil, err
		}
		t := time.Unix(s, 0).UTC()
		return &t, nil
	}
	iat, err1 := at("iat")
	nbf, err2 := at("nbf")
	exp, err3 := at("exp")
	if err := errors.Join(err1, err2, err3); err != nil {
		return issued, nil, err
	}
	switch {
	case iat == nil:
		return issued, nil, errors.New("no iat")
	case iat.After(now.Add(leeway)):
		return issued, nil, fmt.Errorf("issued in the future, %s", iat.Format(time.RFC3339))
	case nbf != nil && nbf.After(now.Add(leeway)):
		return issued, nil, fmt.Errorf("not valid before %s", nbf.Format(time.RFC3339))
	case exp != nil && !now.Before(exp.Add(leeway)):
		return issued, nil, fmt.Errorf("expired at %s", exp.Format(time.RFC3339))
	case now.Sub(*iat) > maxAge+leeway:
		return issued, nil, fmt.Errorf("issued %s ago, at %s; at most %s is allowed", now.Sub(*iat).Round(time.Second), iat.Format(time.RFC3339), maxAge)
	}
	return *iat, exp, nil
}
