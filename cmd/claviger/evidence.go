package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/broker/arm"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/collateral"
	"github.com/claviger/claviger/broker/pemfile"
	"github.com/claviger/claviger/broker/strictjson"
	"github.com/claviger/claviger/broker/tee"
	"github.com/claviger/claviger/broker/tee/nvidia"
	"github.com/claviger/claviger/broker/tee/results"
	"github.com/claviger/claviger/internal/cli"
	"github.com/claviger/claviger/internal/dev"
)

type evidenceFlags struct {
	typ, endorsements, eventLog, reportData, folder, bundle, bundleKey, at, deviceKey, deviceKeys, issuerKeys, rims, akRoots, dev string
	online, lenient                                                                                                               bool
	index                                                                                                                         int
}

func (e *evidenceFlags) register(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&e.typ, "type", "", "evidence type (default: told from the bytes)")
	f.StringVar(&e.endorsements, "endorsements", "", "file with the certificate table (SNP auxblob), if it does not follow the report, or a VCEK certificate (DER or PEM), or the certificates of an NVIDIA device (PEM)")
	f.StringVar(&e.eventLog, "event-log", "", "file with the event log (TDX CCEL data)")
	f.StringVar(&e.reportData, "report-data", "", "expected report data, 128 hex digits (default: not compared)")
	f.StringVar(&e.folder, "collateral", "", "folder with collateral (docs/collateral.md)")
	f.StringVar(&e.bundle, "bundle", "", "signed collateral bundle")
	f.StringVar(&e.bundleKey, "bundle-key", "", "its Ed25519 public key, PEM")
	f.StringVar(&e.deviceKey, "device-key", "", "public key of an endorsed Keystone device, 64 hex digits")
	f.StringVar(&e.issuerKeys, "issuer-keys", "", "keys of the issuer of an attestation result: a JSON Web Key Set, or PEM certificates that its chain ends at")
	f.StringVar(&e.deviceKeys, "device-keys", "", "JSON file with endorsed keys of PSA devices or CCA platforms (docs/evidence/psa.md)")
	f.StringVar(&e.akRoots, "ak-roots", "", "PEM file with CAs that certify attestation keys of TPMs, or of Google's vTPMs")
	f.StringVar(&e.rims, "rims", "", "folder with NVIDIA's reference integrity manifests, NAME.xml")
	f.IntVar(&e.index, "index", 0, "which piece of evidence in a JSON document, as a device in a list of NVIDIA's SDK, from 0")
	f.BoolVar(&e.online, "online", false, "ask the vendors' services for collateral that is missing")
	f.StringVar(&e.at, "at", "", "appraise as of this time, RFC 3339 (default now)")
}

func evidenceCommand(a *adminFlags) *cobra.Command {
	group := &cobra.Command{Use: "evidence", Short: "Look at evidence: what it claims, and whether it verifies"}
	var show, verify evidenceFlags
	showCmd := &cobra.Command{
		Use: "show FILE", Short: "Print the claims of evidence; missing collateral does not matter", Args: exactArgs("FILE"),
		Long: `Print the claims of evidence from a file (an SNP report, with or without its
certificate table behind it, a TDX or an SGX quote, a report with a TPM quote in
it, a document of AWS Nitro, a Keystone report, a PSA or a CCA token, a report of an
NVIDIA device, or a token of another verifier, for which --issuer-keys is needed):
as it is, in hex, base64 or PEM, or anywhere in a JSON document of another tool
(Trustee, Intel Trust Authority, dstack, NVIDIA's SDK, …). Signatures and chains are checked; revocation lists and TCB information that cannot be had are listed as skipped.
The JSON is a fixture for ` + "`claviger policy test`" + `.`,
		Example: "  claviger evidence show report.bin\n  claviger evidence show quote.bin --output json > fixtures/mine.json\n  claviger evidence show report.bin --dev $CLAVIGER_DEV    # made with claviger-agent evidence --simulated-device",
		RunE: func(cmd *cobra.Command, args []string) error {
			return show.run(cmd.Context(), cmd.OutOrStdout(), args[0], a.output, true)
		},
	}
	verifyCmd := &cobra.Command{
		Use: "verify FILE", Short: "Appraise evidence as a broker would; exit code 1 if it would not be believed", Args: exactArgs("FILE"),
		Long: `Appraise evidence as a broker would, and list the outcome of each check. Only the
binding to a request cannot be checked from a file (give --report-data to compare it).

--without-revocation reports revocation lists and TCB information that cannot be
had as skipped, where a broker would refuse.`,
		Example: `  claviger evidence verify report.bin --collateral collateral/
  claviger evidence verify quote.bin --event-log ccel.bin --online
  claviger evidence verify report.bin --at 2024-06-01T00:00:00Z --without-revocation`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return verify.run(cmd.Context(), cmd.OutOrStdout(), args[0], a.output, false)
		},
	}
	show.register(showCmd)
	showCmd.Flags().StringVar(&show.dev, "dev", "", "folder of a dev broker, $CLAVIGER_DEV: believe its SIMULATED device")
	verify.register(verifyCmd)
	verifyCmd.Flags().BoolVar(&verify.lenient, "without-revocation", false, "skip revocation and TCB checks whose collateral is missing")
	group.AddCommand(showCmd, verifyCmd)
	return group
}

func (e *evidenceFlags) run(ctx context.Context, w io.Writer, file, output string, show bool) error {
	now, binding := time.Now(), attest.Unbound()
	if e.at != "" {
		var err error
		if now, err = time.Parse(time.RFC3339, e.at); err != nil {
			return fmt.Errorf("%w: --at: %w", errUsage, err)
		}
	}
	if e.reportData != "" {
		b, err := hex.DecodeString(e.reportData)
		if err != nil || len(b) == 0 {
			return fmt.Errorf("%w: --report-data: want hex", errUsage)
		}
		binding = attest.BindExact(b)
	}
	ev, err := e.read(file)
	if err != nil {
		return err
	}
	trusted, err := e.trusted(ev)
	if err != nil {
		return err
	}
	if e.dev != "" {
		folder := ""
		if trusted.SNP.TestRoots, folder, err = dev.Trust(e.dev); err != nil {
			return fmt.Errorf("--dev: %w", err)
		}
		e.folder = cmp.Or(e.folder, folder)
	}
	coll, err := e.collateral(now, trusted)
	if err != nil {
		return err
	}
	res, err := appraise(ctx, ev, binding, coll, now, trusted, show || e.lenient)
	if err != nil {
		return err
	}
	if show && res.err != nil {
		res = e.describe(ctx, ev, binding, coll, now, trusted, res)
	}
	if output == "json" {
		doc := map[string]any{"checks": res.claims.Checks, "verified": res.err == nil}
		if res.err == nil || res.shown {
			doc["attestation"] = res.claims
		}
		if res.err != nil {
			doc["error"] = map[string]any{"reason": attest.ReasonOf(res.err), "message": res.err.Error()}
		}
		err = writeJSON(w, doc)
	} else {
		err = printClaims(w, ev, res)
	}
	if err == nil && res.err != nil && !(res.shown && missing(res.err)) {
		err = errFailed
	}
	return err
}

// appraised is evidence with the outcome of its appraisal.
type appraised struct {
	claims attest.Claims
	err    error
	shown  bool     // the claims are what the bytes say, though err
	hints  []string // how to get what is missing
}

func appraise(ctx context.Context, ev attest.Evidence, b attest.Binding, coll attest.Collateral, now time.Time, trusted tee.Config, lenient bool) (appraised, error) {
	if lenient {
		trusted = trusted.WithoutRevocation()
	}
	set, err := tee.New(trusted)
	if err != nil {
		return appraised{}, err
	}
	i := slices.IndexFunc(set.Verifiers, func(v attest.Verifier) bool { return v.Type() == ev.Type })
	if i < 0 {
		return appraised{}, fmt.Errorf("%w: no evidence type %q", errUsage, ev.Type)
	}
	claims, verr := set.Verifiers[i].Verify(ctx, ev, b, coll, now)
	return appraised{claims: claims, err: verr}, nil
}

// describe shows what evidence says that is not believed: because nobody vouches for it, or by its bytes alone.
func (e *evidenceFlags) describe(ctx context.Context, ev attest.Evidence, b attest.Binding, coll attest.Collateral, now time.Time, trusted tee.Config, res appraised) appraised {
	if loose, err := appraise(ctx, ev, b, coll, now, trusted.Optional(), true); err == nil && loose.err == nil {
		return appraised{claims: loose.claims, err: res.err, shown: true, hints: hintsFor(ev.Type, nil)}
	}
	claims, pieces, err := tee.Describe(ev)
	if err != nil {
		return res
	}
	claims.Checks = res.claims.Checks
	res.claims, res.shown = claims, true
	if missing(res.err) {
		res.hints = hintsFor(ev.Type, pieces)
	}
	return res
}

// missing says that evidence is not believed only for want of something.
func missing(err error) bool {
	switch attest.ReasonOf(err) {
	case attest.ReasonCollateralMissing, attest.ReasonCollateralExpired:
		return true
	}
	return false
}

// hintsFor say where to get what is missing.
func hintsFor(t attest.Type, pieces []attest.CollateralRef) []string {
	var out []string
	for _, p := range pieces {
		out = append(out, fmt.Sprintf("claviger collateral fetch %s %s --folder collateral    # from AMD, then --collateral collateral", p.Kind, p.Key))
	}
	switch t {
	case attest.TypeSNP:
		out = append(out, "--online asks AMD's service; --endorsements FILE takes a VCEK or VLEK certificate, or the table that came with the report")
	case attest.TypeTDX, attest.TypeSGX:
		out = append(out, "--online asks Intel's service; --collateral FOLDER takes what was fetched before")
	case attest.TypeTPM, attest.TypeGCE:
		out = append(out, "--ak-roots FILE takes the CAs that certify the attestation key")
	case attest.TypeKeystone:
		out = append(out, "--device-key takes the public key of the device")
	case attest.TypePSA, attest.TypeCCA:
		out = append(out, "--device-keys FILE takes the endorsed keys")
	}
	return out
}

// trusted is what the flags say is believed, beside the vendors' roots.
func (e *evidenceFlags) trusted(ev attest.Evidence) (tee.Config, error) {
	var c tee.Config
	if e.deviceKey != "" {
		b, err := hex.DecodeString(e.deviceKey)
		if err != nil || len(b) != 32 {
			return c, fmt.Errorf("%w: --device-key: want 64 hex digits", errUsage)
		}
		c.Keystone.DeviceKeys = [][32]byte{[32]byte(b)}
	}
	if e.deviceKeys != "" {
		b, err := os.ReadFile(e.deviceKeys)
		if err != nil {
			return c, fmt.Errorf("device-keys: %w", err)
		}
		list, err := arm.ParseEndorsements(b)
		if err != nil {
			return c, fmt.Errorf("device-keys: %s: %w", e.deviceKeys, err)
		}
		c.PSA.Endorsements, c.CCA.Endorsements = list, list
	}
	var err error
	if e.akRoots != "" {
		b, err := os.ReadFile(e.akRoots)
		if err != nil {
			return c, fmt.Errorf("ak-roots: %w", err)
		}
		if c.TPM.AKRoots, err = pemfile.Certificates(b); err != nil {
			return c, fmt.Errorf("ak-roots: %s: %w", e.akRoots, err)
		}
		c.GCEAKRoots = c.TPM.AKRoots
	}
	if e.rims != "" {
		if c.NVIDIA.RIMs, err = nvidia.ReadRIMs(e.rims); err != nil {
			return c, fmt.Errorf("--rims: %w", err)
		}
	}
	c.Results.Issuers, err = e.issuers(ev)
	return c, err
}

// issuers is the issuer that a token names, with the keys of --issuer-keys: who
// gives them says that they are its. Without them there is none, and nothing is believed.
func (e *evidenceFlags) issuers(ev attest.Evidence) ([]results.Issuer, error) {
	if e.issuerKeys == "" || ev.Type != attest.TypeResult {
		return nil, nil
	}
	b, err := os.ReadFile(e.issuerKeys)
	if err != nil {
		return nil, fmt.Errorf("issuer-keys: %w", err)
	}
	in := results.Issuer{Name: "--issuer-keys"}
	if bytes.Contains(b, []byte("-----BEGIN ")) {
		in.Roots, err = results.ParseRoots(b)
	} else {
		in.Keys, err = results.ParseKeys(b)
	}
	if err != nil {
		return nil, fmt.Errorf("issuer-keys: %s: %w", e.issuerKeys, err)
	}
	if in.Dialect, in.URL, err = results.Guess(ev.Report); err != nil {
		return nil, nil // the verifier says what is wrong with it
	}
	return []results.Issuer{in}, nil
}

const snpReportSize = 1184

// read takes the report apart: an SNP report may have its certificate table behind it.
func (e *evidenceFlags) read(file string) (attest.Evidence, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return attest.Evidence{}, err
	}
	given := raw
	raw = unwrapped(decoded(raw))
	ev := attest.Evidence{Type: attest.Type(e.typ), Report: raw}
	document := bytes.TrimSpace(raw)
	switch {
	case isSDKList(document) && (ev.Type == "" || ev.Type == attest.TypeNVIDIA):
		if ev, err = fromSDK(raw, e.index); err != nil {
			return ev, err
		}
	case guess(raw) == "" && (bytes.HasPrefix(document, []byte("{")) || bytes.HasPrefix(document, []byte("["))):
		in, found, err := fromJSON(document, e.index)
		if err != nil {
			return ev, fmt.Errorf("%s: %w", file, err)
		}
		if found {
			in.Type = cmp.Or(ev.Type, in.Type)
			ev, raw = in, in.Report
		}
	}
	if ev.Type == "" {
		ev.Type = guess(raw)
	}
	if ev.Type == "" {
		return ev, notRecognised(given, raw)
	}
	if ev.Type == attest.TypeResult {
		ev.Report = bytes.TrimSpace(raw) // files end with a line end, tokens do not
	}
	if ev.Type == attest.TypeSNP && len(raw) > snpReportSize {
		ev.Report, ev.Endorsements = raw[:snpReportSize], raw[snpReportSize:]
	}
	if e.endorsements != "" {
		if ev.Endorsements, err = os.ReadFile(e.endorsements); err != nil {
			return ev, fmt.Errorf("endorsements: %w", err)
		}
		if ev.Type != attest.TypeNVIDIA {
			ev.Endorsements = asTable(ev.Endorsements)
		}
	}
	if e.eventLog != "" {
		if ev.EventLog, err = os.ReadFile(e.eventLog); err != nil {
			return ev, fmt.Errorf("event log: %w", err)
		}
		ev.EventLog = bytes.TrimRight(ev.EventLog, "\xff") // the firmware's whole area, up to 1 MiB: the rest of it is ones
	}
	return ev, nil
}

// decoded is what a file holds in hex (with 0x, or in lines), in base64 or
// base64url, padded or not, or in one PEM block, or the file as it is.
func decoded(raw []byte) []byte {
	text := string(bytes.TrimSpace(raw))
	if blocks, err := pemfile.Bare(raw); err == nil && len(blocks) == 1 {
		return blocks[0].Bytes
	}
	compact := strings.Join(strings.Fields(text), "")
	if compact == "" || strings.HasPrefix(compact, "eyJ") && strings.Contains(compact, ".") { // a JWT is its text
		return raw
	}
	if b, err := hex.DecodeString(strings.TrimPrefix(strings.TrimPrefix(compact, "0x"), "0X")); err == nil {
		return b
	}
	unpadded := strings.TrimRight(compact, "=")
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		if b, err := enc.DecodeString(unpadded); err == nil {
			return b
		}
	}
	return raw
}

// quoteOID is the extension with a DCAP quote in certificates of RA-TLS.
var quoteOID = asn1.ObjectIdentifier{1, 2, 840, 113741, 1337, 6}

// unwrapped takes evidence out of what is put around it: a certificate of
// RA-TLS, and Azure's HCL blob, of which it takes the hardware's report alone.
func unwrapped(raw []byte) []byte {
	switch {
	case bytes.HasPrefix(raw, []byte("HCLA")) && len(raw) >= 32+snpReportSize:
		return raw[32 : 32+snpReportSize]
	case bytes.HasPrefix(raw, []byte{0x30, 0x82}):
		if c, err := x509.ParseCertificate(raw); err == nil {
			for _, x := range c.Extensions {
				if x.Id.Equal(quoteOID) {
					return x.Value
				}
			}
		}
	}
	return raw
}

// isSDKList tells a list of NVIDIA's SDK from other lists.
func isSDKList(b []byte) bool {
	return bytes.HasPrefix(b, []byte("[")) && bytes.Contains(b, []byte(`"certificate"`))
}

// fromSDK takes one device out of a list as NVIDIA's attestation SDK writes it.
func fromSDK(b []byte, index int) (attest.Evidence, error) {
	const maxList = 4 << 20
	if len(b) > maxList {
		return attest.Evidence{}, fmt.Errorf("a list of %d bytes, want at most %d", len(b), maxList)
	}
	var list []struct {
		Evidence    []byte `json:"evidence"`
		Certificate []byte `json:"certificate"` // PEM
	}
	if err := strictjson.Unmarshal(b, &list); err != nil {
		return attest.Evidence{}, fmt.Errorf("list of devices: %w", err)
	}
	if index < 0 || index >= len(list) {
		return attest.Evidence{}, fmt.Errorf("%w: --index: %d in a list of %d devices", errUsage, index, len(list))
	}
	return attest.Evidence{Type: attest.TypeNVIDIA, Report: list[index].Evidence, Endorsements: list[index].Certificate}, nil
}

// guess tells a quote (version 3 to 5, 16 bits, then attestation key type 2)
// from an SNP report (version 2 to 5, 32 bits), and JSON and CBOR by members.
func guess(b []byte) attest.Type {
	if len(b) > 8 && b[0] >= 3 && b[0] <= 5 && b[1] == 0 && b[2] == 2 && b[3] == 0 {
		if b[4] == 0x81 { // TEE_TYPE; version 3 is of SGX only
			return attest.TypeTDX
		}
		return attest.TypeSGX
	}
	// GET_MEASUREMENTS of SPDM 1.1: version, code, signature asked for, all blocks.
	if bytes.HasPrefix(b, []byte{0x11, 0xe0, 0x01, 0xff}) {
		return attest.TypeNVIDIA
	}
	if bytes.HasPrefix(b, []byte("{")) { // ours, in JSON
		if _, err := attest.DecodeAzureReport(b); err == nil {
			return attest.TypeAzure
		}
		if _, err := attest.DecodeGCEReport(b); err == nil {
			return attest.TypeGCE
		}
		if bytes.Contains(b, []byte(`"security_monitor"`)) {
			return attest.TypeKeystone
		}
		if bytes.Contains(b, []byte(`"ak_public"`)) {
			return attest.TypeTPM
		}
		return ""
	}
	if bytes.HasPrefix(b, []byte("eyJ")) { // {" in base64: a JWT
		return attest.TypeResult
	}
	if isKeystone(b) {
		return attest.TypeKeystone
	}
	// CBOR tags 399 and 907.
	if bytes.HasPrefix(b, []byte{0xd9, 0x01, 0x8f}) || bytes.HasPrefix(b, []byte{0xd9, 0x03, 0x8b}) {
		return attest.TypeCCA
	}
	// COSE_Sign1, with and without its tag, and COSE_Mac0.
	for _, p := range []string{"\x84", "\xd2\x84", "\xd1\x84"} {
		if !bytes.HasPrefix(b, []byte(p)) {
			continue
		}
		if bytes.Contains(b, []byte("module_id")) {
			return attest.TypeNitro
		}
		return attest.TypePSA
	}
	if len(b) >= snpReportSize && b[0] >= 2 && b[0] <= 5 && bytes.Equal(b[1:4], []byte{0, 0, 0}) {
		return attest.TypeSNP
	}
	return ""
}

// notRecognised says what was tried.
func notRecognised(given, raw []byte) error {
	as := "as it is"
	if !bytes.Equal(given, raw) {
		as = "decoded from text"
	}
	if _, err := x509.ParseCertificate(raw); err == nil {
		return errors.New("not recognised: a certificate without evidence in it; give the report, and the certificate with --endorsements")
	}
	return fmt.Errorf(`not recognised: %d bytes, %s, that begin with %x
tried: hex, base64, base64url and PEM; an SNP report (1184 bytes, version 2 to 5), a TDX or SGX quote (version 3 to 5), a certificate of RA-TLS, an HCL blob,
a report of Keystone or of an NVIDIA device, tokens of PSA, CCA and Nitro (CBOR), a token of another verifier (JWT), and evidence in JSON; --type says what it is`, len(raw), as, raw[:min(len(raw), 16)])
}

// isKeystone tells a report of Keystone by its size, and that of the data in it
// (the 64-bit number behind a hash), from an SNP report, which begins with a small version.
func isKeystone(b []byte) bool {
	const withoutData, data = 328, 1024
	if len(b) < withoutData || bytes.HasPrefix(b[1:], make([]byte, 3)) {
		return false
	}
	n := binary.LittleEndian.Uint64(b[64:])
	return n <= data && (len(b) == withoutData+data || len(b) == withoutData+int(n))
}

// vcekGUID names the VCEK in a certificate table (AMD publication 56421): 63da758d-e664-4564-adc5-f4b93be8accd.
var vcekGUID = []byte{0x63, 0xda, 0x75, 0x8d, 0xe6, 0x64, 0x45, 0x64, 0xad, 0xc5, 0xf4, 0xb9, 0x3b, 0xe8, 0xac, 0xcd}

// vlekGUID names the VLEK: a8074bc2-a25a-483e-aae6-39c045a0b8a1.
var vlekGUID = []byte{0xa8, 0x07, 0x4b, 0xc2, 0xa2, 0x5a, 0x48, 0x3e, 0xaa, 0xe6, 0x39, 0xc0, 0x45, 0xa0, 0xb8, 0xa1}

// asTable puts a lone certificate into a certificate table.
func asTable(b []byte) []byte {
	if der, err := pemfile.One(b, "CERTIFICATE"); err == nil {
		b = der
	}
	c, err := x509.ParseCertificate(b)
	if err != nil {
		return b
	}
	guid := vcekGUID
	if c.Subject.CommonName == "SEV-VLEK" {
		guid = vlekGUID
	}
	le := func(n int) []byte { return []byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)} }
	const header = 2 * 24
	return slices.Concat(guid, le(header), le(len(b)), make([]byte, 24), b)
}

// collateral is checked as a broker checks it, but for what cannot be had.
func (e *evidenceFlags) collateral(now time.Time, trusted tee.Config) (attest.Collateral, error) {
	set, err := tee.New(trusted.WithoutRevocation())
	if err != nil {
		return nil, err
	}
	cfg := collateral.Config{Checker: set, Folder: e.folder, Now: func() time.Time { return now }}
	if e.at != "" {
		// At a pinned clock the files' ages say nothing.
		cfg.Now = time.Now
	}
	if e.online {
		cfg.Services = collateral.DefaultServices()
	}
	if e.bundle != "" {
		key, err := publicKey(e.bundleKey)
		if err != nil {
			return nil, fmt.Errorf("bundle-key: %w", err)
		}
		if cfg.Bundle, err = collateral.ReadBundle(e.bundle, key); err != nil {
			return nil, err
		}
	}
	return collateral.New(cfg)
}

func printClaims(w io.Writer, ev attest.Evidence, res appraised) error {
	c := res.claims
	switch {
	case res.err == nil:
		word := "real hardware"
		if c.Simulated {
			word = "SIMULATED hardware"
		} else if c.Type == attest.TypeResult {
			word = "what another verifier says"
		}
		cli.Fprintf(w, "VERIFIED: %s, %s %s\n", word, c.Type, c.HardwareModel)
		if c.Collateral.State == attest.CollateralExpired {
			cli.Fprintf(w, "but WITHOUT revocation lists or TCB information: a broker would refuse this (see the skipped checks)\n")
		}
	case res.shown && missing(res.err):
		cli.Fprintf(w, "UNVERIFIED: %v\n", res.err)
	default:
		cli.Fprintf(w, "NOT BELIEVED: %v\n", res.err)
	}
	for _, h := range res.hints {
		cli.Fprintf(w, "  %s\n", h)
	}
	cli.Fprintf(w, "\nChecks\n")
	err := table(w, "", func(row func(...any)) {
		for _, k := range c.Checks {
			row("  "+string(k.Outcome), k.Name, k.Detail)
		}
	})
	if err != nil || res.err != nil && !res.shown {
		return err
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var doc map[string]any
	if err := dec.Decode(&doc); err != nil {
		return err
	}
	heading := "Claims"
	if res.err != nil {
		heading = "Claims, UNVERIFIED: what the bytes say, and anybody can write such bytes"
	}
	cli.Fprintf(w, "\n%s\n", heading)
	return table(w, "", func(row func(...any)) { flatten("", doc, func(k, v string) { row("  "+k, v) }) })
}

// flatten prints a document as path and value.
func flatten(path string, v any, row func(k, v string)) {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			flatten(strings.TrimPrefix(path+"."+k, "."), v[k], row)
		}
	case []any:
		if len(v) == 0 {
			row(path, "[]")
		}
		for i, x := range v {
			flatten(fmt.Sprintf("%s[%d]", path, i), x, row)
		}
	default:
		row(path, fmt.Sprint(v))
	}
}

func publicKey(file string) (ed25519.PublicKey, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	key, err := pemfile.Ed25519(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return key, nil
}

func collateralCommand() *cobra.Command {
	group := &cobra.Command{Use: "collateral", Short: "Fetch and pack collateral for sites without a way to the vendors"}
	var out, keyFile string
	bundle := &cobra.Command{
		Use: "bundle FOLDER", Short: "Pack and sign a folder of collateral", Args: exactArgs("FOLDER"),
		Example: "  openssl genpkey -algorithm ed25519 -out bundle.key\n  claviger collateral bundle collateral/ --key bundle.key --out collateral.tar.gz",
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := os.ReadFile(keyFile)
			if err != nil {
				return fmt.Errorf("key: %w", err)
			}
			der, err := pemfile.One(b, "PRIVATE KEY")
			if err != nil {
				return fmt.Errorf("key: %s: %w", keyFile, err)
			}
			k, err := x509.ParsePKCS8PrivateKey(der)
			if err != nil {
				return fmt.Errorf("key: %w", err)
			}
			priv, ok := k.(ed25519.PrivateKey)
			if !ok {
				return errors.New("key: not an Ed25519 private key")
			}
			if err := collateral.WriteBundle(out, args[0], priv); err != nil {
				return err
			}
			got, err := collateral.ReadBundle(out, priv.Public().(ed25519.PublicKey))
			if err != nil {
				return err
			}
			cli.Fprintf(cmd.OutOrStdout(), "%s: %d pieces, signature in %[1]s.sig\n", out, got.Len())
			return nil
		},
	}
	bundle.Flags().StringVarP(&out, "out", "o", "collateral.tar.gz", "file to write")
	bundle.Flags().StringVar(&keyFile, "key", "", "Ed25519 private key, PKCS #8 PEM (required)")
	var folder string
	fetch := &cobra.Command{
		Use: "fetch KIND [KEY]", Short: "Fetch a piece from the vendor's service into a folder",
		Long:    "Fetch a piece of collateral. KIND and KEY are named as in docs/collateral.md, for example: snp-crl milan/vcek.",
		Example: "  claviger collateral fetch snp-crl milan/vcek --folder collateral/\n  claviger collateral fetch tdx-tcb-info 90c06f000000 --folder collateral/",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := tee.New(tee.Config{})
			if err != nil {
				return err
			}
			src, err := collateral.New(collateral.Config{Checker: set, Services: collateral.DefaultServices()})
			if err != nil {
				return err
			}
			ref := attest.CollateralRef{Kind: attest.CollateralKind(args[0])}
			if len(args) == 2 {
				ref.Key = args[1]
			}
			it, err := src.Get(cmd.Context(), ref)
			if err != nil {
				return err
			}
			path, err := src.WriteFolder(cmd.Context(), folder, ref, it)
			if err != nil {
				return err
			}
			cli.Fprintf(cmd.OutOrStdout(), "%s: %d bytes\n", path, len(it.Data))
			return nil
		},
	}
	fetch.Flags().StringVar(&folder, "folder", "collateral", "folder to write to")
	group.AddCommand(bundle, fetch)
	return group
}
