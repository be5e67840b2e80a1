package attest

import (
	"context"
	"time"
)

// CollateralKind names a kind of endorsement or status list. The set is closed.
type CollateralKind string

// Kinds, with the encoding of Item.Data.
const (
	SNPChain     CollateralKind = "snp-chain"    // PEM, ASK or ASVK then ARK
	SNPVCEK      CollateralKind = "snp-vcek"     // DER certificate
	SNPCRL       CollateralKind = "snp-crl"      // DER CRL, signed by the ARK
	TDXTCBInfo   CollateralKind = "tdx-tcb-info" // JSON {"tcbInfo":…,"signature":…}
	SGXTCBInfo   CollateralKind = "sgx-tcb-info" // the same for SGX
	TDXQEID      CollateralKind = "tdx-qe-identity"
	SGXQEID      CollateralKind = "sgx-qe-identity"
	PCKCRL       CollateralKind = "pck-crl"        // DER CRL, signed by the PCK Platform or Processor CA
	IntelRootCRL CollateralKind = "intel-root-crl" // DER CRL, signed by the SGX root
)

// CollateralRef identifies one piece of collateral.
type CollateralRef struct {
	Kind CollateralKind
	// Key tells pieces of one kind apart, as a relative path of lower-case
	// [a-z0-9._-] segments. Per kind:
	//   snp-chain        "{milan|genoa|turin}/{vcek|vlek}"
	//   snp-vcek         "{milan|genoa|turin}/{chip id, hex}/{TCB as 16 hex digits of REPORTED_TCB's little-endian u64 value}"
	//   snp-crl          "{milan|genoa|turin}/{vcek|vlek}"
	//   tdx-/sgx-tcb-info "{fmspc, 12 hex digits}"
	//   *-qe-identity    ""
	//   pck-crl          "platform" | "processor"
	//   intel-root-crl   ""
	Key string
}

// CollateralItem is a piece of collateral as obtained. Whatever a source has checked, the verifier checks its signature.
type CollateralItem struct {
	Data        []byte
	IssuerChain []byte    // PEM, where the service sends it beside the data (PCS headers); else nil
	FetchedAt   time.Time // when a source last obtained or confirmed it; zero for pieces that came in the evidence
	Source      string    // "evidence", "bundle", "folder", "cache", "service"
	// Stale is set by the source when the piece is past its refresh age but
	// within its limit, because the vendor's service could not be reached.
	Stale bool
}

// Collateral finds collateral. Get returns an *Error with ReasonCollateralMissing,
// ReasonCollateralExpired, or ReasonCollateralInvalid if what there was is not
// genuine. It is safe for concurrent use.
type Collateral interface {
	Get(ctx context.Context, ref CollateralRef) (CollateralItem, error)
}

// Freshness of the collateral that an appraisal used.
const (
	CollateralFresh   = "fresh"
	CollateralStale   = "stale"
	CollateralExpired = "expired"
)

// CollateralState is the worst of the collateral that an appraisal used. State
// is about when the source obtained it; AgeSeconds about when its issuer made it.
type CollateralState struct {
	State      string `json:"state"`
	AgeSeconds int64  `json:"age_seconds"` // of the oldest list or document, since the date that its issuer signed
}

// Add folds one more piece into the state.
func (s *CollateralState) Add(it CollateralItem) {
	if s.State == "" {
		s.State = CollateralFresh
	}
	if it.Stale {
		s.State = CollateralStale
	}
}

// Issued folds the date of a list or document into the age: its thisUpdate, or
// issueDate. Certificates have none that counts: they say what does not change.
func (s *CollateralState) Issued(at, now time.Time) {
	if age := int64(now.Sub(at) / time.Second); age > s.AgeSeconds {
		s.AgeSeconds = age
	}
}
