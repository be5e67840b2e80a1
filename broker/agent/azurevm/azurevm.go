// Package azurevm makes evidence in a confidential VM of Azure: the report that
// the paravisor left in the vTPM, a quote by the key that this report vouches
// for, and what Azure's metadata service adds (docs/evidence/azure-vtpm.md).
package azurevm

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/claviger/claviger/broker/agent/tpmdev"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/pemfile"
	"github.com/claviger/claviger/broker/strictjson"
)

// DefaultIMDS is where a VM of Azure reaches its metadata service. It is the
// host's, and not authenticated: what comes from there is signed by AMD or Intel.
const DefaultIMDS = "http://169.254.169.254"

const (
	hclIndex = 0x01400001
	akHandle = 0x81000003

	maxAnswer = 256 << 10
)

// Layout of the HCL report: a header, room for the hardware report, then the
// head of the runtime data, whose third number says what the hardware is.
const (
	headerSize   = 32
	hardwareSize = 1184
	tdReportSize = 1024
	typeOffset   = headerSize + hardwareSize + 8
	typeSNP      = 2
	typeTDX      = 4
)

// Device is a confidential VM. It is safe for concurrent use.
type Device struct {
	tpm  *tpmdev.Device
	imds string
	http *http.Client
}

// New is the device of a VM with that vTPM. imds is the address of the metadata service; empty: DefaultIMDS.
func New(tpm *tpmdev.Device, imds string) *Device {
	if imds == "" {
		imds = DefaultIMDS
	}
	// No proxy: the address is this machine's own.
	return &Device{tpm, imds, &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}}
}

// Evidence implements agent.Device.
func (d *Device) Evidence(ctx context.Context, t attest.Transcript) (attest.Evidence, error) {
	return d.evidence(ctx, t.Digest32())
}

// Raw makes evidence over given report data, of which a TPM takes 32 bytes. It binds the evidence to nothing of ours.
func (d *Device) Raw(ctx context.Context, reportData [64]byte) (attest.Evidence, error) {
	if [32]byte(reportData[32:]) != ([32]byte{}) {
		return attest.Evidence{}, errors.New("azure: report data of more than 32 bytes")
	}
	return d.evidence(ctx, [32]byte(reportData[:32]))
}

func (d *Device) evidence(ctx context.Context, digest [32]byte) (attest.Evidence, error) {
	hcl, err := d.tpm.NV(hclIndex)
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("azure: report of the paravisor (is this a confidential VM?): %w", err)
	}
	if len(hcl) < typeOffset+4 {
		return attest.Evidence{}, fmt.Errorf("azure: report of the paravisor has %d bytes", len(hcl))
	}
	q, err := d.tpm.QuoteBy(akHandle, digest)
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("azure: %w", err)
	}
	r := attest.AzureReport{HCLReport: hcl, Quote: q.Quote, Signature: q.Signature, PCRs: q.PCRs, Cmdline: q.Cmdline, SystemdLog: q.SystemdLog}
	ev := attest.Evidence{Type: attest.TypeAzure, EventLog: q.EventLog}
	switch typ := binary.LittleEndian.Uint32(hcl[typeOffset:]); typ {
	case typeSNP:
		// Without it the broker asks AMD itself, if it may.
		if ev.Endorsements, err = d.certificates(ctx); err != nil && ctx.Err() != nil {
			return attest.Evidence{}, err
		}
	case typeTDX:
		if r.TDQuote, err = d.tdQuote(ctx, hcl[headerSize:headerSize+tdReportSize]); err != nil {
			return attest.Evidence{}, err
		}
	default:
		return attest.Evidence{}, fmt.Errorf("azure: the VM is of type %d, neither SEV-SNP nor TDX", typ)
	}
	if ev.Report, err = r.Encode(); err != nil {
		return attest.Evidence{}, fmt.Errorf("azure: encode evidence: %w", err)
	}
	return ev, nil
}

// certificates are the chip's certificate as a GUID certificate table (AMD 56421, "Certificate Table").
func (d *Device) certificates(ctx context.Context) ([]byte, error) {
	var answer struct {
		VCEK string `json:"vcekCert"`
	}
	if err := d.ask(ctx, http.MethodGet, "/metadata/THIM/amd/certification", nil, &answer); err != nil {
		return nil, err
	}
	der, err := pemfile.One([]byte(answer.VCEK), "CERTIFICATE")
	if err != nil || len(der) > attest.MaxEndorsementsSize-48 {
		return nil, fmt.Errorf("azure: the metadata service answered without a certificate: %w", err)
	}
	table, err := hex.DecodeString("63da758de6644564adc5f4b93be8accd") // VCEK
	if err != nil {
		return nil, err
	}
	table = binary.LittleEndian.AppendUint32(table, 48)
	table = binary.LittleEndian.AppendUint32(table, uint32(len(der)))
	return append(append(table, make([]byte, 24)...), der...), nil
}

// tdQuote has the host's quoting enclave sign a TDREPORT.
func (d *Device) tdQuote(ctx context.Context, report []byte) ([]byte, error) {
	question, err := json.Marshal(map[string]string{"report": base64.RawURLEncoding.EncodeToString(report)})
	if err != nil {
		return nil, err
	}
	var answer struct {
		Quote string `json:"quote"`
	}
	if err := d.ask(ctx, http.MethodPost, "/acc/tdquote", question, &answer); err != nil {
		return nil, err
	}
	quote, err := base64.RawURLEncoding.DecodeString(answer.Quote)
	if err != nil || len(quote) == 0 {
		return nil, fmt.Errorf("azure: the metadata service answered without a quote: %w", err)
	}
	return quote, nil
}

func (d *Device) ask(ctx context.Context, method, path string, body []byte, answer any) error {
	req, err := http.NewRequestWithContext(ctx, method, d.imds+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("azure: metadata service: %w", err)
	}
	req.Header.Set("Metadata", "true")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := d.http.Do(req)
	if err != nil {
		return fmt.Errorf("azure: metadata service: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("azure: metadata service: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("azure: metadata service: %s: %s", path, resp.Status)
	}
	if err := strictjson.Unmarshal(b, answer); err != nil {
		return fmt.Errorf("azure: metadata service: %s: %w", path, err)
	}
	return nil
}
