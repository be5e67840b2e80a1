package token

import "github.com/claviger/claviger/broker/attest"

// Trustworthiness claims: values of AR4SI (draft-ietf-rats-ar4si) §3.2 that are used here.
const (
	noClaim           = 0
	genuine           = 2  // hardware
	vulnerable        = 32 // hardware: genuine, with known vulnerabilities
	untrusted         = 96 // hardware: recognized and contraindicated
	unrecognized      = 97 // hardware: not recognized, and should be
	encrypted         = 2  // runtime-opaque: encrypted, within a TEE
	visible           = 96 // runtime-opaque: memory can be read from outside
	unsafeConfig      = 32 // configuration exposes known vulnerabilities
	unsupportedConfig = 96 // configuration exposes unacceptable vulnerabilities
)

// vector is the trustworthiness vector. What the broker cannot know it does not
// affirm: docs/tokens.md has the table of derivation.
type vector struct {
	Configuration int `json:"configuration"`
	// Executables is always "no claim": whether a measurement is a good one is
	// for policy, and a policy's reasons are not the claims'.
	Executables   int `json:"executables"`
	Hardware      int `json:"hardware"`
	RuntimeOpaque int `json:"runtime-opaque"`
}

func appraise(c attest.Claims) vector {
	v := vector{Hardware: hardware(c)}
	switch c.TCB.Status {
	case attest.TCBConfigurationNeeded, attest.TCBConfigAndSWHardening, attest.TCBOutOfDateConfiguration:
		v.Configuration = unsafeConfig
	}
	if c.Debuggable {
		v.Configuration, v.RuntimeOpaque = unsupportedConfig, visible
	} else if v.Hardware == genuine && c.BoundToCPUTEE && !c.Migratable && (c.Type == attest.TypeSNP || c.Type == attest.TypeTDX) {
		v.RuntimeOpaque = encrypted
	}
	return v
}

func hardware(c attest.Claims) int {
	if c.Simulated {
		return unrecognized // a test root: anybody can make such evidence
	}
	switch c.TCB.Status {
	case attest.TCBRevoked:
		return untrusted
	case attest.TCBOutOfDate, attest.TCBOutOfDateConfiguration, attest.TCBSWHardeningNeeded, attest.TCBConfigAndSWHardening:
		return vulnerable
	case attest.TCBUpToDate, attest.TCBConfigurationNeeded, attest.TCBUnknown:
		// Genuine as of the collateral; without current collateral it may have been revoked.
		// Of a result of another verifier, this one saw neither the hardware nor the collateral.
		if c.Type != attest.TypeResult && (c.Collateral.State == attest.CollateralFresh || c.Collateral.State == attest.CollateralStale) {
			return genuine
		}
	}
	return noClaim
}

// status is the tier of the worst claim (AR4SI §3.2, in the words of EAR). It
// affirms only where both claims that a TEE is for are affirmed: nobody should
// read "affirming" for a TPM that is bound to no CPU.
func (v vector) status() string {
	switch worst := max(v.Configuration, v.Executables, v.Hardware, v.RuntimeOpaque); {
	case worst >= 96:
		return "contraindicated"
	case worst >= 32:
		return "warning"
	case v.Hardware == genuine && v.RuntimeOpaque == encrypted:
		return "affirming"
	}
	return "none"
}
