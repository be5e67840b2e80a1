package collateral

import (
	"crypto/x509"
	"fmt"
	"math/big"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/pemfile"
	"github.com/claviger/claviger/broker/strictjson"
)

// edition says how new a document is, by what its issuer signed. A mirror that
// lags, or goes back in time, answers with documents that the broker has outgrown:
// an old list does not have the revocations that were made since.
type edition struct {
	issued, expires time.Time
	number          *big.Int // CRL number, TCB evaluation data number; nil: it has none
	series          string   // of the numbers
}

// editionOf reads a genuine document.
func editionOf(kind attest.CollateralKind, data []byte) (edition, error) {
	switch kind {
	case attest.SNPCRL, attest.PCKCRL, attest.IntelRootCRL:
		l, err := x509.ParseRevocationList(data)
		if err != nil {
			return edition{}, err
		}
		// A new key of the authority counts anew.
		return edition{l.ThisUpdate, l.NextUpdate, l.Number, string(l.RawIssuer) + string(l.AuthorityKeyId)}, nil
	case attest.SNPVCEK:
		c, err := x509.ParseCertificate(data)
		if err != nil {
			return edition{}, err
		}
		return edition{issued: c.NotBefore, expires: c.NotAfter}, nil
	case attest.SNPChain:
		// The first issues certificates of chips. Nobody verifies or uses those after it.
		certs, err := pemfile.BareCertificates(data)
		if err != nil {
			return edition{}, err
		}
		if len(certs) == 0 {
			return edition{}, fmt.Errorf("no certificates")
		}
		return edition{issued: certs[0].NotBefore, expires: certs[0].NotAfter}, nil
	}
	type dated struct {
		Issued  time.Time `json:"issueDate"`
		Expires time.Time `json:"nextUpdate"`
		Number  uint32    `json:"tcbEvaluationDataNumber"`
	}
	var doc struct {
		TCB *dated `json:"tcbInfo"`
		QE  *dated `json:"enclaveIdentity"`
	}
	// What its dates are must be what the verifier reads.
	if err := strictjson.Unmarshal(data, &doc); err != nil {
		return edition{}, err
	}
	d := doc.TCB
	if d == nil {
		d = doc.QE
	}
	if d == nil {
		return edition{}, fmt.Errorf("neither tcbInfo nor enclaveIdentity")
	}
	return edition{issued: d.Issued, expires: d.Expires, number: new(big.Int).SetUint64(uint64(d.Number))}, nil
}

// expired says that the issuer wanted the document to be replaced by now.
func (e edition) expired(now time.Time) bool { return !e.expires.IsZero() && now.After(e.expires) }

// maxAhead is how far a document may be dated ahead of our clock: verifiers refuse what is not valid yet.
const maxAhead = 10 * time.Minute

// worse says why a document must not take the place of another, or is nil.
func (e edition) worse(held edition, now time.Time) error {
	switch {
	case e.expired(now) && !held.expired(now):
		return fmt.Errorf("it expired on %s", e.expires.Format(time.RFC3339))
	case e.issued.After(now.Add(maxAhead)):
		return fmt.Errorf("it is dated %s, which is ahead", e.issued.Format(time.RFC3339))
	case !e.expired(now) && held.expired(now):
		return nil
	case e.number != nil && held.number != nil && e.series == held.series && e.number.Cmp(held.number) < 0:
		return fmt.Errorf("it has number %s, that one %s", e.number, held.number)
	case e.issued.Before(held.issued):
		return fmt.Errorf("it is of %s, that one of %s", e.issued.Format(time.RFC3339), held.issued.Format(time.RFC3339))
	}
	return nil
}

// piece is a genuine item with what it says of itself.
type piece struct {
	attest.CollateralItem
	edition edition
}

func newPiece(kind attest.CollateralKind, it attest.CollateralItem) (piece, error) {
	e, err := editionOf(kind, it.Data)
	if err != nil {
		return piece{}, fmt.Errorf("%w: %w", errForged, err)
	}
	return piece{it, e}, nil
}
