package dcap

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"

	"github.com/claviger/claviger/broker/attest"
)

// CheckCollateral says whether a piece of collateral is the one that ref names,
// signed by Intel or below a test root:
//
//   - intel-root-crl: the root signed it.
//   - pck-crl: the PCK CA that the key names signed it. The CA's certificate is
//     the issuer chain's, or Intel's where there is none.
//   - tcb-info, qe-identity: a TCB signing certificate signed it; it is for the
//     kind of TEE and the FMSPC of ref, and of a form that Verify can read.
//
// A certificate that the root's CRL in c revokes counts for nothing: whoever
// has its key could make documents that are newer than any of Intel's.
//
// Dates are not looked at, nor what the piece says of any platform. The error
// is of ReasonCollateralInvalid if the piece is not genuine, of
// ReasonCollateralMissing if the root's CRL cannot be had.
func (v *Verifier) CheckCollateral(ctx context.Context, ref attest.CollateralRef, it attest.CollateralItem, c attest.Collateral) error {
	const check = "collateral"
	var errs []error
	for _, root := range append(v.intel[:1:1], v.testRoots...) {
		signer, err := v.signedBy(ref, it, root)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if signer == root {
			return nil
		}
		revoked, err := v.revokedBy(ctx, root, signer, c)
		switch {
		case revoked:
			return attest.Errorf(check, attest.ReasonCollateralInvalid, "the certificate %q that signed it is revoked", signer.Subject.CommonName)
		case err != nil && !v.collateralOptional:
			return attest.Errorf(check, attest.ReasonCollateralMissing, "whether the certificate that signed it is revoked: %w", err)
		}
		return nil
	}
	return attest.Errorf(check, attest.ReasonCollateralInvalid, "%w", errors.Join(errs...))
}

// signedBy verifies a piece up to a root, and returns the certificate that signed it.
func (v *Verifier) signedBy(ref attest.CollateralRef, it attest.CollateralItem, root *x509.Certificate) (*x509.Certificate, error) {
	switch ref.Kind {
	case attest.IntelRootCRL:
		_, err := v.crl(it.Data, root)
		return root, err
	case attest.PCKCRL:
		ca, err := v.pckCA(ref.Key, it.IssuerChain, root)
		if err == nil {
			_, err = v.crl(it.Data, ca)
		}
		return ca, err
	case attest.TDXTCBInfo, attest.SGXTCBInfo:
		want := TEETDX
		if ref.Kind == attest.SGXTCBInfo {
			want = TEESGX
		}
		info, err := v.tcbInfo(it, root)
		if err != nil {
			return nil, err
		}
		// What Intel says of one platform must not stand for what it says of another.
		if info.ID != want.String() || hex.EncodeToString(info.FMSPC) != ref.Key {
			return nil, invalid("TCB info is for %s, FMSPC %x", info.ID, []byte(info.FMSPC))
		}
		return info.signer, nil
	case attest.TDXQEID, attest.SGXQEID:
		want := "TD_QE"
		if ref.Kind == attest.SGXQEID {
			want = "QE"
		}
		id, err := v.qeIdentity(it, root)
		if err != nil {
			return nil, err
		}
		if id.ID != want {
			return nil, invalid("identity of %q, want %q", id.ID, want)
		}
		return id.signer, nil
	}
	return nil, unsupported("not of Intel")
}

// pckCA is the PCK CA of a name ("platform", "processor").
func (v *Verifier) pckCA(name string, chain []byte, root *x509.Certificate) (*x509.Certificate, error) {
	role, ok := map[string]string{"platform": cnPlatformCA, "processor": cnProcessorCA}[name]
	if !ok {
		return nil, invalid("no PCK CA is called %q", name)
	}
	if len(chain) == 0 {
		for _, ca := range v.intel[1:] {
			if hasRole(ca, role) && checkIssued(ca, root) == nil {
				return ca, nil
			}
		}
	}
	ca, err := signerOf(chain, root)
	if err != nil {
		return nil, err
	}
	if !hasRole(ca, role) {
		return nil, invalid("%q is not the %s", ca.Subject.CommonName, role)
	}
	return ca, nil
}

// revokedBy looks a certificate up in its root's CRL.
func (v *Verifier) revokedBy(ctx context.Context, root, cert *x509.Certificate, c attest.Collateral) (bool, error) {
	it, err := c.Get(ctx, attest.CollateralRef{Kind: attest.IntelRootCRL})
	if err != nil {
		return false, err
	}
	list, err := v.crl(it.Data, root)
	if err != nil {
		return false, err
	}
	return list.revoked[cert.SerialNumber.String()], nil
}
