package results

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/claviger/claviger/broker/attest"
)

// Submod is an appraisal of one of the guest's parts.
type Submod struct {
	Status   string         `json:"status"`
	Vector   map[string]int `json:"trustworthiness_vector"` // AR4SI §3.2, -128 to 127
	Policies []string       `json:"appraisal_policy_ids"`
	CPUTEE   bool           `json:"cpu_tee"` // the verifier says that this is a genuine CPU TEE
}

// tiers are the values of status, the best first.
var tiers = []string{"affirming", "none", "warning", "contraindicated"}

// Values of AR4SI §3.2.
const (
	genuine    = 2  // hardware
	vulnerable = 32 // hardware: genuine, with known vulnerabilities
	opaque     = 2  // runtime-opaque: encrypted, within a TEE
)

// readEAR reads an EAT attestation result: with the names of
// draft-ietf-rats-ear-03 or those before it (Veraison, Confidential Containers).
// Measurements have the submodule's name before them: "cpu0.measurement".
func readEAR(o object, i Issuer) (appraisal, error) {
	a := appraisal{measurements: map[string]string{}, submods: map[string]Submod{}, status: tiers[0], tcb: tcbOf(object{}, "")}
	all := o.at("submods")
	if len(all) == 0 {
		return a, errors.New("no submods")
	}
	if i.NonceAttested {
		for n, s := range o.strings("eat_nonce") {
			a.fields = append(a.fields, field{fmt.Sprintf("eat_nonce[%d]", n), s})
		}
	}
	var parts []part
	for _, name := range slices.Sorted(maps.Keys(all)) {
		m := all.at(name)
		s, err := readSubmod(m)
		if err != nil {
			return a, fmt.Errorf("submods.%s: %w", name, err)
		}
		of, err := readEvidence(name, m, s)
		if err != nil {
			return a, fmt.Errorf("submods.%s: %w", name, err)
		}
		s.CPUTEE = of.cpuTEE && s.Status != "contraindicated" && (s.Vector["hardware"] == genuine || s.Vector["hardware"] == vulnerable)
		a.submods[name] = s
		if slices.Index(tiers, s.Status) > slices.Index(tiers, a.status) {
			a.status = s.Status
		}
		a.simulated = a.simulated || of.simulated
		parts = append(parts, part{of, s.CPUTEE})
	}
	return a, a.join(parts)
}

// part is one submodule, and whether it is of a CPU that the verifier calls genuine.
type part struct {
	appraisal
	genuine bool
}

// join makes one appraisal of the parts. What the CPU says is what the token is
// about: a GPU's part alone is bound to no CPU. Where several parts are of CPUs,
// at most one of them may be genuine, and each may spoil what is claimed: no part's
// good word covers for another's bad one, and only the genuine one has measurements.
func (a *appraisal) join(parts []part) error {
	var cpus []part
	genuine := 0
	for _, p := range parts {
		if p.cpuTEE || len(parts) == 1 {
			cpus = append(cpus, p)
		} else {
			maps.Copy(a.measurements, p.measurements)
		}
		if p.genuine {
			genuine++
		}
	}
	if genuine > 1 {
		return fmt.Errorf("claims of %d CPUs", genuine)
	}
	for i, p := range cpus {
		if i == 0 {
			a.debuggable, a.migratable, a.cpuTEE = p.debuggable, p.migratable, p.genuine
		}
		if p.chipID != "" && len(cpus) > 1 {
			a.identities = append(a.identities, p.chipID)
		}
		a.debuggable, a.migratable = worst(a.debuggable, p.debuggable), worst(a.migratable, p.migratable)
		a.cpuTEE = a.cpuTEE && p.genuine
		if p.genuine || genuine == 0 && i == 0 {
			a.hardware, a.chipID, a.hostData, a.tcb = p.hardware, p.chipID, p.hostData, p.tcb
			maps.Copy(a.measurements, p.measurements)
			a.fields = append(a.fields, p.fields...)
		}
	}
	for _, p := range cpus { // its status is not that of the other
		if p.tcb.Status != a.tcb.Status {
			a.tcb = tcbOf(object{}, "")
		}
	}
	return nil
}

func readSubmod(m object) (Submod, error) {
	s := Submod{Vector: map[string]int{}}
	draft, before := m["ear_status"], m["ear.status"]
	if draft != nil && before != nil {
		return s, errors.New("both ear_status and ear.status")
	}
	vector := m.at("ear_trustworthiness_vector")
	s.Status, _ = draft.(string)
	s.Policies = m.strings("ear_appraisal_policy_ids")
	if before != nil {
		s.Status, _ = before.(string)
		vector = m.at("ear.trustworthiness-vector")
		s.Policies = m.strings("ear.appraisal-policy-id")
	}
	if !slices.Contains(tiers, s.Status) {
		return s, fmt.Errorf("status %v: want one of %q", m["ear_status"], tiers)
	}
	for name, v := range vector {
		n, _ := v.(json.Number)
		i, err := strconv.ParseInt(n.String(), 10, 8)
		if err != nil {
			return s, fmt.Errorf("trustworthiness vector: %s: want -128 to 127", name)
		}
		s.Vector[name] = int(i)
	}
	return s, nil
}

// readEvidence reads what the verifier repeats of a part's evidence, which each
// does in its own way, and else what the trustworthiness vector says.
func readEvidence(name string, m object, s Submod) (appraisal, error) {
	a := appraisal{hardware: name, measurements: map[string]string{}, tcb: tcbOf(object{}, "")}
	// "Encrypted, within a TEE" is the vendor-neutral word for what a CPU TEE does.
	a.cpuTEE = s.Vector["runtime-opaque"] == opaque
	if vector, ok := s.Vector["runtime-opaque"]; ok {
		a.debuggable = yes
		if vector == opaque {
			a.debuggable = no
		}
	}
	found := 0
	for _, member := range []string{"ear_claviger_annotated_evidence", "ear.veraison.annotated-evidence", "ear_veraison_annotated_evidence"} {
		ev := m.at(member)
		if len(ev) == 0 {
			continue
		}
		if found++; found > 1 {
			return a, errors.New("evidence under two names")
		}
		if _, ours := ev["bound_to_cpu_tee"]; ours {
			readOurs(&a, name, m, ev)
		} else if err := readTrustee(&a, name, ev); err != nil {
			return a, err
		}
	}
	return a, nil
}

// readOurs reads the evidence in a token of another Claviger (broker/token). It
// is bound to a request of that broker, and so never to one of this broker.
func readOurs(a *appraisal, name string, m, ev object) {
	a.hardware, a.chipID, a.hostData = ev.text("hardware_model"), ev.text("chip_id"), ev.text("host_data")
	a.cpuTEE, a.simulated = ev.is("bound_to_cpu_tee", true), !ev.is("simulated", false)
	a.debuggable, a.migratable = ev.answer("debuggable"), ev.answer("migratable")
	tcb := ev.at("tcb")
	a.tcb = tcbOf(object{"tcb_status": tcb["status"], "advisory_ids": tcb["advisories"], "tcb_date": tcb["date"]}, "")
	if tcb.text("status") == attest.TCBUnknown {
		a.tcb.Status = attest.TCBUnknown // another Claviger means by it what this one does
	}
	for k := range ev.at("measurements") {
		pick(a.measurements, name+".", ev.at("measurements"), k)
	}
	a.fields = append(a.fields, field{"submods." + name + ".eat_nonce", m.text("eat_nonce")}, field{"submods." + name + ".report_data", ev.text("report_data")})
}

// readTrustee reads the evidence in a token of Confidential Containers' attestation
// service: the claims under the TEE's name, and beside them report_data and the
// runtime data that the service found hashed in it.
func readTrustee(a *appraisal, name string, ev object) error {
	found := 0
	for _, tee := range []string{"snp", "az-snp-vtpm", "tdx", "az-tdx-vtpm", "sgx", "sample"} {
		c, ok := ev[tee].(map[string]any)
		if !ok {
			continue
		}
		if found++; found > 1 {
			return errors.New("evidence of two TEEs in one part")
		}
		claims := object(c)
		a.hardware, a.cpuTEE, a.simulated = tee, tee != "sample", tee == "sample"
		a.tcb = tcbOf(claims, "")
		prefix, body := name+".", claims.at("quote").at("body")
		switch tee {
		case "snp", "az-snp-vtpm":
			a.debuggable, a.migratable, a.tcb = spelled(claims["policy_debug_allowed"]), spelled(claims["policy_migrate_ma"]), noTCB
			a.chipID = asHex(claims.text("chip_id"))
			pick(a.measurements, prefix, claims, "measurement")
		case "tdx", "az-tdx-vtpm":
			a.debuggable = spelled(claims.at("td_attributes")["debug"])
			a.migratable = tdMigratable(body.text("td_attributes"), body.text("mr_servicetd"))
			pick(a.measurements, prefix, body, "mr_td", "mr_seam", "mrsigner_seam", "mr_config_id", "mr_owner", "mr_owner_config", "rtmr_0", "rtmr_1", "rtmr_2", "rtmr_3")
		case "sgx":
			body = claims.at("body")
			a.debuggable, a.migratable = unstated, no
			pick(a.measurements, prefix, body, "mr_enclave", "mr_signer")
		}
		a.hostData = asHex(ev.text("init_data"))
	}
	at := "submods." + name + ".annotated-evidence."
	a.fields = append(a.fields, field{at + "report_data", ev.text("report_data")}, field{at + "runtime_data_claims.nonce", ev.at("runtime_data_claims").text("nonce")})
	return nil
}

// spelled is an answer in the spellings that the service has used for it.
func spelled(v any) answer {
	switch v := v.(type) {
	case nil:
		return unstated
	case bool:
		if !v {
			return no
		}
	case string:
		if v == "0" || v == "false" {
			return no
		}
	case json.Number:
		if v == "0" {
			return no
		}
	}
	return yes
}
