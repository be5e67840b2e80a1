package snp

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/claviger/claviger/broker/attest"
)

// CheckCollateral says whether a piece of collateral is the one that ref names,
// signed by AMD or below a test root:
//
//   - snp-crl: a root of the product line signed it.
//   - snp-chain: the first certificate is the ASK or ASVK of the product line,
//     signed by one of its roots. Those after it are not used.
//   - snp-vcek: for the product line, the chip and the TCB of ref, signed by an
//     ASK below a root. The ASK is AMD's of today, or that of the snp-chain in c.
//
// Dates are not looked at, nor who is revoked: of a revoked key the verifier
// must say so, and for that it needs the certificate. The error is of
// ReasonCollateralInvalid if the piece is not genuine, of
// ReasonCollateralMissing if the snp-chain cannot be had.
func (v *Verifier) CheckCollateral(ctx context.Context, ref attest.CollateralRef, it attest.CollateralItem, c attest.Collateral) error {
	err := v.checkCollateral(ctx, ref, it, c)
	if err == nil {
		return nil
	}
	reason := attest.ReasonCollateralInvalid
	if errors.Is(err, errNoIssuer) {
		reason = attest.ReasonCollateralMissing
	}
	return attest.Errorf("collateral", reason, "%w", err)
}

var errNoIssuer = errors.New("the certificate that should have signed it cannot be had")

func (v *Verifier) checkCollateral(ctx context.Context, ref attest.CollateralRef, it attest.CollateralItem, c attest.Collateral) error {
	if ref.Kind == attest.SNPVCEK {
		return v.checkVCEK(ctx, ref.Key, it.Data, c)
	}
	name, of, _ := strings.Cut(ref.Key, "/")
	l, kind := line(name), keyVCEK
	if of == keyVLEK.String() {
		kind = keyVLEK
	}
	if len(v.anchors[l]) == 0 || of != kind.String() {
		return fmt.Errorf("want {product line}/vcek or vlek")
	}
	var errs []error
	for _, r := range v.anchors[l] {
		err := fmt.Errorf("not of AMD")
		switch ref.Kind {
		case attest.SNPChain:
			err = checkChainPEM(it.Data, l, kind, r)
		case attest.SNPCRL:
			_, err = v.list(it.Data, r)
		}
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func checkChainPEM(b []byte, l line, kind signingKey, r anchor) error {
	issuers, err := parseChainPEM(b)
	if err != nil {
		return err
	}
	if err := checkIssuer(issuers[0], l, kind); err != nil {
		return err
	}
	return r.signed(issuers[0])
}

// parseChainPEM reads an snp-chain: its first certificate issues leaves.
func parseChainPEM(b []byte) ([]*x509.Certificate, error) {
	issuers, err := parsePEM(b)
	if err == nil && len(issuers) == 0 {
		err = fmt.Errorf("a chain without certificates")
	}
	return issuers, err
}

func (v *Verifier) checkVCEK(ctx context.Context, key string, data []byte, c attest.Collateral) error {
	der, err := certDER(data)
	if err != nil {
		return err
	}
	lf, err := parseLeaf(der, keyVCEK)
	if err != nil {
		return cause(err)
	}
	// The certificate of another chip, or of other firmware, would hide this one's.
	if of := string(lf.kds.line) + "/" + hex.EncodeToString(lf.kds.hwid) + "/" + tcbHex(lf.kds.tcb); of != key {
		return fmt.Errorf("it is the certificate of %s", of)
	}
	for _, s := range v.sources(lf.kds.line, keyVCEK, certTable{}) {
		if _, err := v.link(lf, s); err == nil {
			return nil
		}
	}
	it, err := c.Get(ctx, attest.CollateralRef{Kind: attest.SNPChain, Key: string(lf.kds.line) + "/" + keyVCEK.String()})
	if err != nil {
		return fmt.Errorf("%w: %w", errNoIssuer, err)
	}
	issuers, err := parseChainPEM(it.Data)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoIssuer, err)
	}
	_, err = v.link(lf, source{issuer: issuers[0], der: issuers[0].Raw})
	return err
}
