package token

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"strconv"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
)

// Profiles (RFC 9711 §6).
const (
	profileDraft03   = "tag:ietf.org,2026:rats/ear#03"
	profileVeraison  = "tag:github.com,2023:veraison/ear"
	profileAppraisal = "tag:github.com,2026:claviger/claviger/ear#1" // of the extensions in a submodule
)

// common claims are the same in both dialects.
type common struct {
	Profile  string `json:"eat_profile"`
	Issuer   string `json:"iss"`
	Subject  string `json:"sub"` // "claviger:" and the release policy that was satisfied
	Audience string `json:"aud"`
	ID       string `json:"jti"` // the decision in the broker's audit log
	IssuedAt int64  `json:"iat"`
	Expires  int64  `json:"exp"`

	Confirmation confirmation `json:"cnf"`
	// Flat holds strings only, because relying parties compare strings: Vault
	// as JSON pointers ("/claviger/measurement"), clouds as attributes.
	Flat map[string]string `json:"claviger"`
}

type verifierID struct {
	Developer string `json:"developer"`
	Build     string `json:"build"`
}

// draft03 is draft-ietf-rats-ear-03 §3.
type draft03 struct {
	common
	Status   string                      `json:"ear_status"`
	Verifier verifierID                  `json:"ear_verifier_id"`
	Submods  map[string]draft03Appraisal `json:"submods"`
}

type draft03Appraisal struct {
	Profile  string   `json:"eat_profile"`
	Status   string   `json:"ear_status"`
	Vector   vector   `json:"ear_trustworthiness_vector"`
	Policies []string `json:"ear_appraisal_policy_ids"`
	// Nonce is the one in the evidence, which is report_data: the digest that
	// binds the broker's challenge and the attested key (DESIGN §2), base64url.
	Nonce    string   `json:"eat_nonce,omitempty"`
	Evidence evidence `json:"ear_claviger_annotated_evidence"`
}

// veraison is what github.com/veraison/ear v1.1 reads. It knows only the relying
// party's nonce, on the top level; report_data stands in the evidence.
type veraison struct {
	common
	Verifier verifierID                   `json:"ear.verifier-id"`
	Submods  map[string]veraisonAppraisal `json:"submods"`
}

type veraisonAppraisal struct {
	Status   string   `json:"ear.status"`
	Vector   vector   `json:"ear.trustworthiness-vector"`
	Policy   string   `json:"ear.appraisal-policy-id"`
	Evidence evidence `json:"ear.veraison.annotated-evidence"`
}

// evidence is the normalised part of attest.Claims. The vendor's section stays
// in the audit log: a token travels in headers.
type evidence struct {
	Type          attest.Type            `json:"type"`
	HardwareModel string                 `json:"hardware_model"`
	ChipID        string                 `json:"chip_id"`
	BoundToCPUTEE bool                   `json:"bound_to_cpu_tee"`
	Debuggable    bool                   `json:"debuggable"`
	Migratable    bool                   `json:"migratable"`
	Simulated     bool                   `json:"simulated"`
	TCB           attest.TCB             `json:"tcb"`
	Measurements  map[string]string      `json:"measurements"`
	HostData      string                 `json:"host_data"`
	ReportData    string                 `json:"report_data"`
	Collateral    attest.CollateralState `json:"collateral"`
}

// claims returns the payload. What is missing is an error: a token that leaves
// out what it should bind says less than its reader assumes.
func (s *Source) claims(g broker.Granted, issued, expires int64) ([]byte, error) {
	c := g.Claims
	switch {
	case !c.Bound:
		return nil, errors.New("the evidence is not bound to a request")
	case c.Type == "":
		return nil, errors.New("the claims name no type of evidence")
	case g.Entry.Key == "":
		return nil, errors.New("no audience")
	case g.Entry.Policy == "" || g.PolicyDigest == "":
		return nil, errors.New("no policy")
	case g.DecisionID == "":
		return nil, errors.New("no decision")
	}
	cnf, err := confirm(g.Recipient, g.PublicKey)
	if err != nil {
		return nil, err
	}
	base := common{
		Issuer: s.cfg.Issuer, Subject: "claviger:" + g.Entry.Policy, Audience: g.Entry.Key, ID: g.DecisionID,
		IssuedAt: issued, Expires: expires, Confirmation: cnf, Flat: flat(g),
	}
	id, v := verifierID{s.cfg.Developer, s.cfg.Build}, appraise(c)
	ev := evidence{
		c.Type, c.HardwareModel, c.ChipID, c.BoundToCPUTEE, c.Debuggable, c.Migratable, c.Simulated,
		c.TCB, c.Measurements, c.HostData, c.ReportData, c.Collateral,
	}
	if g.Entry.Options["dialect"] == Veraison {
		base.Profile = profileVeraison
		return json.Marshal(veraison{base, id, map[string]veraisonAppraisal{
			string(c.Type): {v.status(), v, g.PolicyDigest, ev},
		}})
	}
	base.Profile = profileDraft03
	return json.Marshal(draft03{base, v.status(), id, map[string]draft03Appraisal{
		string(c.Type): {profileAppraisal, v.status(), v, []string{g.PolicyDigest}, nonce(c.ReportData), ev},
	}})
}

// flat has each measurement under its own name, and what else a relying party may bind.
func flat(g broker.Granted) map[string]string {
	c := g.Claims
	m := maps.Clone(c.Measurements)
	if m == nil {
		m = map[string]string{}
	}
	// Written last, and always: no measurement, whatever its name, takes the place of one of these.
	maps.Copy(m, map[string]string{
		"type": string(c.Type), "hardware_model": c.HardwareModel, "chip_id": c.ChipID, "host_data": c.HostData,
		"tcb_status": c.TCB.Status, "debuggable": strconv.FormatBool(c.Debuggable), "simulated": strconv.FormatBool(c.Simulated),
		"policy": g.Entry.Policy, "policy_digest": g.PolicyDigest,
	})
	return m
}

// nonce is report_data in the form of eat_nonce: 8 to 64 bytes, base64url; else nothing.
func nonce(reportData string) string {
	b, err := hex.DecodeString(reportData)
	if err != nil || len(b) < 8 || len(b) > 64 {
		return ""
	}
	return b64(b)
}
