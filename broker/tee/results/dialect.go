package results

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// appraisal is what a dialect makes of a token. The zero value claims nothing good.
type appraisal struct {
	hardware     string // as the dialect spells it
	debuggable   answer
	migratable   answer
	cpuTEE       bool
	simulated    bool
	identities   []string // of all its CPUs
	chipID       string
	tcb          attest.TCB
	measurements map[string]string
	hostData     string
	fields       []field
	status       string
	submods      map[string]Submod
}

// answer is what a token says to a question whose good answer is no. The zero value is that it says nothing.
type answer int

// Answers, the best last.
const (
	unstated answer = iota
	yes
	no
)

// worst of several parts: one that says yes speaks for all, and so does one that says nothing.
func worst(answers ...answer) answer {
	if slices.Contains(answers, yes) {
		return yes
	}
	return slices.Min(answers)
}

// answer of a member that is true or false. Anything else that is there is no good answer.
func (o object) answer(name string) answer {
	switch v := o[name].(type) {
	case nil:
		return unstated
	case bool:
		if !v {
			return no
		}
	}
	return yes
}

// not is the answer of a member that is true for the good.
func (o object) not(name string) answer {
	if o.is(name, true) {
		return no
	}
	return worst(yes, o.answer(name))
}

// tdMigratable reads TDATTRIBUTES as a verifier repeats them, 8 bytes in hex, and
// the service TD if it does.
func tdMigratable(attributes, serviceTD string) answer {
	b, err := hex.DecodeString(attributes)
	switch {
	case strings.Trim(serviceTD, "0") != "":
		return yes
	case attributes == "":
		return unstated
	case err != nil || len(b) != 8 || b[3]&0x20 != 0 || b[4]&0x20 != 0: // bit 29, in the order of the quote; or, where somebody turned it around, 32+5, which is reserved
		return yes
	}
	return no
}

// field is a claim that repeats what the guest had attested.
type field struct{ path, value string }

// dialects read claims.
var dialects = map[Dialect]func(object, Issuer) (appraisal, error){EAR: readEAR, MAA: readMAA, ITA: readITA, Google: readGoogle}

// Guess tells the dialect of a token, and its issuer's URL, of which neither is verified.
func Guess(b []byte) (d Dialect, url string, err error) {
	t, err := parse(b)
	if err != nil {
		return "", "", err
	}
	has := func(name string) bool { _, ok := t.claims[name]; return ok }
	url = t.claims.text("iss")
	switch {
	case has("x-ms-attestation-type"):
		return MAA, url, nil
	case has("hwmodel") && has("swname"):
		return Google, url, nil
	case has("attester_type") || has("verifier_instance_ids"):
		return ITA, url, nil
	case has("submods"):
		return EAR, url, nil
	}
	return "", url, errors.New("a token of no known verifier")
}

// bind compares the fields with the binding. It returns the one that is bound,
// or the first if none was asked for, and its bytes.
func (a appraisal) bind(b attest.Binding) (path string, data []byte, bound bool, err error) {
	var first error
	for _, f := range a.fields {
		for _, d := range spellings(f.value, 2) {
			ok, e := b.Check(d)
			if ok {
				return f.path, d, true, nil
			}
			if e == nil && path == "" {
				path, data = f.path, d
			}
			if e != nil && first == nil {
				first = fmt.Errorf("%s: %w", f.path, e)
			}
		}
	}
	if path != "" || first != nil {
		return path, data, false, first
	}
	// Nothing to compare is no fault if nothing was to be compared.
	if ok, e := b.Check(nil); !ok && e == nil {
		return "", nil, false, nil
	}
	return "", nil, false, errors.New("the token repeats nothing that the guest had attested: it is bound to no request")
}

// spellings are the bytes that a text may stand for: hex, base64url, base64, and
// these once more inside the first. All are only ever compared with a digest.
func spellings(s string, depth int) [][]byte {
	var out [][]byte
	add := func(b []byte, err error) {
		if err != nil || len(b) == 0 {
			return
		}
		out = append(out, b)
		if depth > 1 {
			out = append(out, spellings(string(b), depth-1)...)
		}
	}
	if len(s) > 1024 {
		return nil
	}
	add(hex.DecodeString(s))
	trimmed := strings.TrimRight(s, "=")
	if strings.ContainsAny(s, "-_") {
		add(base64.RawURLEncoding.DecodeString(trimmed))
	} else {
		add(base64.RawStdEncoding.DecodeString(trimmed))
	}
	return out
}

// pick copies the members that are hex or base64 digests, as lower-case hex, under prefix.
func pick(into map[string]string, prefix string, o object, names ...string) {
	for _, n := range names {
		if h := asHex(o.text(n)); h != "" {
			into[prefix+n] = h
		}
	}
}

// asHex is a digest in lower-case hex; without what names its algorithm.
func asHex(s string) string {
	s = strings.TrimPrefix(s, "sha256:")
	if _, err := hex.DecodeString(s); err == nil {
		return strings.ToLower(s)
	}
	if b, err := base64.StdEncoding.DecodeString(s); err == nil && len(b) >= 32 {
		return hex.EncodeToString(b)
	}
	return ""
}

// noTCB is that of hardware whose vendor publishes no status.
var noTCB = attest.TCB{Status: attest.TCBUnknown, Advisories: []string{}}

// tcbOf is the status in the words of Intel, or Unstated.
func tcbOf(o object, prefix string) attest.TCB {
	tcb := attest.TCB{Status: attest.TCBUnstated, Advisories: o.strings(prefix + "advisory_ids")}
	if tcb.Advisories == nil {
		tcb.Advisories = []string{}
	}
	if s := o.text(prefix + "tcb_status"); s != "" && s != attest.TCBUnknown { // ours, and means that there is none
		// A word that nobody knows is not "unknown": it may be the worst. Policies deny what they do not know.
		tcb.Status = s
	}
	if d, err := time.Parse(time.RFC3339, o.text(prefix+"tcb_date")); err == nil {
		tcb.Date = &d
	}
	return tcb
}

// readMAA reads claims of Microsoft Azure Attestation. In a token about a VM
// with a vTPM ("azurevm"), the CPU's part is x-ms-isolation-tee.
func readMAA(o object, _ Issuer) (appraisal, error) {
	const prefix = "x-ms-"
	kind := o.text(prefix + "attestation-type")
	a := appraisal{hardware: kind, measurements: map[string]string{}}
	tee, runtime := o, o.at(prefix+"runtime")
	clear := no
	if kind == "azurevm" {
		tee = o.at(prefix + "isolation-tee")
		a.hardware = tee.text(prefix + "attestation-type")
		clear = worst(o.not(prefix+"azurevm-debuggersdisabled"), o.answer(prefix+"azurevm-kerneldebug-enabled"),
			o.answer(prefix+"azurevm-hypervisordebug-enabled"), o.answer(prefix+"azurevm-bootdebug-enabled"))
		// client-payload is what the guest's library was given, under the TPM's signature.
		for n := range runtime.at("client-payload") {
			a.fields = append(a.fields, field{"x-ms-runtime.client-payload." + n, runtime.at("client-payload").text(n)})
		}
		slices.SortFunc(a.fields, func(x, y field) int { return strings.Compare(x.path, y.path) })
	}
	// What the runtime data of the CPU's report says is in the hash that the report holds.
	// A nonce beside them (x-ms-nonce) is repeated from whoever asked, and is nothing.
	if kind != "azurevm" {
		a.fields = append(a.fields, field{"x-ms-runtime.nonce", runtime.text("nonce")})
	}
	add := func(name string) { a.fields = append(a.fields, field{name, tee.text(name)}) }
	switch a.hardware {
	case "sevsnpvm":
		const p = prefix + "sevsnpvm-"
		a.debuggable = worst(clear, tee.answer(p+"is-debuggable"))
		a.migratable = tee.answer(p + "migration-allowed")
		a.hostData = asHex(tee.text(p + "hostdata"))
		pick(a.measurements, "", tee, p+"launchmeasurement", p+"idkeydigest", p+"authorkeydigest")
		add(p + "reportdata")
		a.tcb = noTCB
	case "sgx":
		const p = prefix + "sgx-"
		a.debuggable, a.migratable = tee.answer(p+"is-debuggable"), no // an enclave stays where it was made
		a.hostData = asHex(tee.text(p + "config-id"))
		pick(a.measurements, "", tee, p+"mrenclave", p+"mrsigner")
		add(p + "ehd")
		add(p + "report-data")
		a.tcb = tcbOf(object{}, "")
	case "tdxvm":
		a.debuggable = worst(clear, tee.answer("tdx_td_attributes_debug"))
		a.migratable = tdMigratable(tee.text("tdx_td_attributes"), tee.text("tdx_mrservicetd"))
		a.hostData = asHex(tee.text("tdx_mrconfigid"))
		pick(a.measurements, "", tee, tdxNames...)
		add("tdx_report_data")
		a.tcb = tcbOf(tee, "attester_")
	default:
		return a, fmt.Errorf("x-ms-attestation-type %q is not one of a TEE", a.hardware)
	}
	a.cpuTEE = true
	return a, nil
}

// tdxNames are the measurements in tokens of Intel and of Microsoft.
var tdxNames = []string{"tdx_mrtd", "tdx_rtmr0", "tdx_rtmr1", "tdx_rtmr2", "tdx_rtmr3", "tdx_mrseam", "tdx_mrsignerseam", "tdx_mrowner", "tdx_mrownerconfig"}

// readITA reads claims of Intel Trust Authority: of one attester on the top
// level, or of several in an object for each, of which the CPU's counts.
func readITA(o object, _ Issuer) (appraisal, error) {
	tee := o
	if o.text("attester_type") == "" {
		found := 0
		for _, n := range []string{"sgx", "tdx", "sevsnp"} {
			if len(o.at(n)) > 0 {
				tee = o.at(n)
				found++
			}
		}
		if found != 1 {
			return appraisal{}, fmt.Errorf("claims of %d CPUs", found)
		}
	}
	a := appraisal{hardware: tee.text("attester_type"), measurements: map[string]string{}, tcb: tcbOf(tee, "attester_")}
	nonce := tee.at("verifier_nonce")
	if len(nonce) == 0 {
		nonce = o.at("verifier_nonce")
	}
	switch a.hardware {
	case "SGX":
		a.debuggable, a.migratable = tee.answer("sgx_is_debuggable"), no
		a.hostData = asHex(tee.text("sgx_config_id"))
		pick(a.measurements, "", tee, "sgx_mrenclave", "sgx_mrsigner")
		a.holds(tee, nonce, "sgx_report_data")
	case "TDX":
		a.debuggable = tee.answer("tdx_is_debuggable")
		if tee.answer("tdx_td_attributes_debug") == yes {
			a.debuggable = yes
		}
		a.migratable = tdMigratable(tee.text("tdx_td_attributes"), tee.text("tdx_mrservicetd"))
		a.hostData = asHex(tee.text("tdx_mrconfigid"))
		pick(a.measurements, "", tee, tdxNames...)
		a.holds(tee, nonce, "tdx_report_data")
	case "SEVSNP":
		a.debuggable, a.migratable = tee.answer("sevsnp_is_debuggable"), tee.answer("sevsnp_migration_allowed")
		a.tcb = noTCB
		a.hostData = asHex(tee.text("sevsnp_hostdata"))
		pick(a.measurements, "", tee, "sevsnp_launchmeasurement", "sevsnp_idkeydigest", "sevsnp_authorkeydigest")
		a.holds(tee, nonce, "sevsnp_reportdata")
	default:
		return a, fmt.Errorf("attester_type %q is not one of a CPU", a.hardware)
	}
	// dbgstat says the same in EAT's words; one of both is enough to be refused.
	if s, ok := tee["dbgstat"]; ok && s != "disabled" && s != "disabled-since-boot" {
		a.debuggable = yes
	}
	a.cpuTEE = true
	return a, nil
}

// holds adds the report data, and the held data if the report data is their hash
// behind Intel's own nonce, or the user data of an Azure VM is: what else was
// sent along with a quote, nobody attested.
func (a *appraisal) holds(tee, nonce object, reportData string) {
	a.fields = append(a.fields, field{reportData, tee.text(reportData)})
	var message []byte
	for _, s := range []string{nonce.text("val"), nonce.text("iat"), tee.text("attester_held_data")} {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			return
		}
		message = append(message, b...)
	}
	short, long := sha256.Sum256(message), sha512.Sum512(message)
	attested := []string{hex.EncodeToString(short[:]) + strings.Repeat("00", 32), hex.EncodeToString(long[:])}
	if slices.Contains(attested, tee.text(reportData)) || strings.EqualFold(tee.at("attester_runtime_data").text("user-data"), attested[1]) {
		a.fields = append(a.fields, field{"attester_held_data", tee.text("attester_held_data")})
	}
}

// readGoogle reads claims of Google Cloud Attestation. eat_nonce is what the
// workload asked the launcher to have in the token.
func readGoogle(o object, _ Issuer) (appraisal, error) {
	a := appraisal{hardware: o.text("hwmodel"), measurements: map[string]string{}, tcb: tcbOf(object{}, "")}
	if a.hardware == "" || o.text("swname") == "" {
		return a, errors.New("no hwmodel or swname")
	}
	for n, s := range o.strings("eat_nonce") {
		a.fields = append(a.fields, field{fmt.Sprintf("eat_nonce[%d]", n), s})
	}
	switch o.text("dbgstat") {
	case "":
	case "disabled-since-boot", "disabled":
		a.debuggable = no
	default:
		a.debuggable = yes
	}
	// SEV without SNP attests nothing remotely, nor does it keep the host from changing memory.
	switch a.hardware {
	case "GCP_INTEL_TDX":
		a.cpuTEE, a.tcb = true, tcbOf(o.at("tdx"), "gcp_attester_")
	case "GCP_AMD_SEV_SNP":
		a.cpuTEE, a.tcb = true, noTCB
	case "GCP_AMD_SEV", "GCP_AMD_SEV_ES":
		a.tcb = noTCB
	}
	// Only the image of Confidential Space sees to it that the container is the one named.
	if o.text("swname") == "CONFIDENTIAL_SPACE" {
		pick(a.measurements, "", o.at("submods").at("container"), "image_digest", "image_id")
	}
	return a, nil
}
