package collateral

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/pemfile"
)

// maxPiece bounds one piece of collateral, in bytes. Intel's TCB info is about 30 KiB, AMD's CRLs a few KiB.
const maxPiece = 1 << 20

// Services are the vendors' services or mirrors of them; empty means not to be asked.
type Services struct {
	KDS          string // AMD, "https://kdsintf.amd.com"
	PCS          string // Intel PCS v4 or a PCCS, "https://api.trustedservices.intel.com"
	IntelRootCRL string // "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
}

// DefaultServices are the vendors' own.
func DefaultServices() Services {
	return Services{
		KDS: "https://kdsintf.amd.com", PCS: "https://api.trustedservices.intel.com",
		IntelRootCRL: "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
	}
}

var errNoService = errors.New("no service is configured for it")

func (s Services) fetch(ctx context.Context, c *http.Client, lim *rate.Limiter, ref attest.CollateralRef) (attest.CollateralItem, error) {
	u, chainHeader, err := s.url(ref)
	if err != nil {
		return attest.CollateralItem{}, err
	}
	if err := lim.Wait(ctx); err != nil {
		return attest.CollateralItem{}, fmt.Errorf("too many requests to the vendor's service: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return attest.CollateralItem{}, fmt.Errorf("make request: %w", err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return attest.CollateralItem{}, fmt.Errorf("fetch: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		err := fmt.Errorf("fetch %s: %d %s", u, resp.StatusCode, http.StatusText(resp.StatusCode)) // not the service's own words
		if after := parseRetryAfter(resp.Header.Get("Retry-After"), time.Now()); after > 0 {
			err = retryLater{err, after}
		}
		return attest.CollateralItem{}, err
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxPiece+1))
	if err != nil {
		return attest.CollateralItem{}, fmt.Errorf("fetch %s: %w", u, err)
	}
	if len(data) > maxPiece {
		return attest.CollateralItem{}, fmt.Errorf("fetch %s: more than %d bytes", u, maxPiece)
	}
	// A PCCS sends CRLs in hex.
	if ref.Kind == attest.IntelRootCRL || ref.Kind == attest.PCKCRL {
		if der, err := hex.DecodeString(strings.TrimSpace(string(data))); err == nil {
			data = der
		}
	}
	if err := plausible(ref.Kind, data); err != nil {
		return attest.CollateralItem{}, fmt.Errorf("fetch %s: %w", u, err)
	}
	it := attest.CollateralItem{Data: data}
	if chainHeader != "" {
		chain, err := url.QueryUnescape(resp.Header.Get(chainHeader))
		if err != nil || chain == "" {
			return attest.CollateralItem{}, fmt.Errorf("fetch %s: no usable %s header", u, chainHeader)
		}
		it.IssuerChain = []byte(chain)
	}
	return it, nil
}

// retryLater is an answer with a Retry-After.
type retryLater struct {
	error
	after time.Duration
}

func (r retryLater) Unwrap() error { return r.error }

// parseRetryAfter reads seconds or a date (RFC 9110 §10.2.3); 0: nothing usable.
func parseRetryAfter(s string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(s); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

// base is where a kind is asked for; empty: nowhere.
func (s Services) base(kind attest.CollateralKind) string {
	switch kind {
	case attest.SNPChain, attest.SNPVCEK, attest.SNPCRL:
		return s.KDS
	case attest.IntelRootCRL:
		return s.IntelRootCRL
	}
	return s.PCS
}

// url follows AMD's VCEK certificate and KDS interface specification (57230)
// and Intel's PCS API v4. It also names the header that carries the issuers.
func (s Services) url(ref attest.CollateralRef) (u, chainHeader string, err error) {
	base := s.base(ref.Kind)
	if base == "" {
		return "", "", errNoService
	}
	base = strings.TrimSuffix(base, "/")
	part := strings.Split(ref.Key, "/")
	switch ref.Kind {
	case attest.SNPChain:
		if len(part) != 2 || (part[1] != "vcek" && part[1] != "vlek") {
			return "", "", fmt.Errorf("malformed key %q", ref.Key)
		}
		return fmt.Sprintf("%s/%s/v1/%s/cert_chain", base, part[1], product(part[0])), "", nil
	case attest.SNPCRL:
		if len(part) != 2 || (part[1] != "vcek" && part[1] != "vlek") {
			return "", "", fmt.Errorf("malformed key %q", ref.Key)
		}
		return fmt.Sprintf("%s/%s/v1/%s/crl", base, part[1], product(part[0])), "", nil
	case attest.SNPVCEK:
		if len(part) != 3 {
			return "", "", fmt.Errorf("malformed key %q", ref.Key)
		}
		spl, err := splQuery(part[0], part[2])
		return fmt.Sprintf("%s/vcek/v1/%s/%s?%s", base, product(part[0]), part[1], spl), "", err
	case attest.TDXTCBInfo, attest.SGXTCBInfo:
		return fmt.Sprintf("%s/%s/certification/v4/tcb?fmspc=%s", base, ref.Kind[:3], ref.Key), "TCB-Info-Issuer-Chain", nil
	case attest.TDXQEID, attest.SGXQEID:
		return fmt.Sprintf("%s/%s/certification/v4/qe/identity", base, ref.Kind[:3]), "SGX-Enclave-Identity-Issuer-Chain", nil
	case attest.PCKCRL:
		return fmt.Sprintf("%s/sgx/certification/v4/pckcrl?ca=%s&encoding=der", base, ref.Key), "SGX-PCK-CRL-Issuer-Chain", nil
	case attest.IntelRootCRL:
		return base, "", nil
	}
	return "", "", errNoService
}

// product is AMD's spelling: "milan" becomes "Milan".
func product(key string) string {
	if key == "" {
		return ""
	}
	return strings.ToUpper(key[:1]) + key[1:]
}

// splQuery turns REPORTED_TCB (16 hex digits of its u64 value) into KDS's
// query. Turin has an FMC and another byte order.
func splQuery(product, tcb string) (string, error) {
	b, err := hex.DecodeString(tcb)
	if err != nil || len(b) != 8 {
		return "", fmt.Errorf("malformed TCB %q", tcb)
	}
	at := func(i int) byte { return b[7-i] } // byte i of the little-endian field
	if product == "turin" {
		return fmt.Sprintf("fmcSPL=%d&blSPL=%d&teeSPL=%d&snpSPL=%d&ucodeSPL=%d", at(0), at(1), at(2), at(3), at(7)), nil
	}
	return fmt.Sprintf("blSPL=%d&teeSPL=%d&snpSPL=%d&ucodeSPL=%d", at(0), at(1), at(6), at(7)), nil
}

// plausible refuses what cannot be a piece of this kind, so that garbage (an
// error page with status 200) does not take the place of a good piece in the cache.
func plausible(kind attest.CollateralKind, data []byte) error {
	switch kind {
	case attest.SNPCRL, attest.PCKCRL, attest.IntelRootCRL:
		if _, err := x509.ParseRevocationList(data); err != nil {
			return fmt.Errorf("not a DER CRL: %w", err)
		}
	case attest.SNPVCEK:
		if _, err := x509.ParseCertificate(data); err != nil {
			return fmt.Errorf("not a DER certificate: %w", err)
		}
	case attest.SNPChain:
		if _, err := pemfile.BareCertificates(data); err != nil {
			return fmt.Errorf("not a PEM certificate chain: %w", err)
		}
	case attest.TDXTCBInfo, attest.SGXTCBInfo, attest.TDXQEID, attest.SGXQEID:
		if !json.Valid(data) || !bytes.Contains(data, []byte(`"signature"`)) {
			return errors.New("not a signed JSON document")
		}
	}
	return nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 2*maxPiece+1))
	if err != nil {
		return nil, err
	}
	if len(data) > 2*maxPiece {
		return nil, fmt.Errorf("%s has more than %d bytes", path, 2*maxPiece)
	}
	return data, nil
}
