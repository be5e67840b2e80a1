package brokertest

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/server"
	"github.com/claviger/claviger/internal/testservers"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// meddler changes what a device made, as who stands between it and the broker would.
type meddler struct {
	agent.Device
	change func(attest.Transcript) attest.Transcript
	after  func(attest.Evidence) attest.Evidence
}

func (m meddler) Evidence(ctx context.Context, t attest.Transcript) (attest.Evidence, error) {
	if m.change != nil {
		t = m.change(t)
	}
	ev, err := m.Device.Evidence(ctx, t)
	if m.after != nil && err == nil {
		ev = m.after(ev)
	}
	return ev, err
}

const compositePolicy = `package claviger.release.composite

import data.claviger.lib.common
import data.claviger.lib.reference
import data.claviger.lib.tpm

default allow := false

allow if reference.match("sev-snp", ["measurement"])

deny contains r if some r in common.baseline_denials

# The TPM that we know, booted as we know.
deny contains r if {
	count(common.devices_of("tpm")) != 1
	r := common.reason("tpm_missing", "not one TPM", "attestation.devices", "")
}

deny contains r if {
	some device in common.devices_of("tpm")
	not device.vouched_by == "sev-snp"
	r := common.reason("not_vouched", "", "", "")
}

deny contains r if {
	some device in common.devices_of("tpm")
	some r in reference.denials("tpm", ["pcr0", "cmdline"]) with input.attestation as device
}

deny contains r if {
	some device in common.devices_of("tpm")
	some r in reference.chip_denials("tpm") with input.attestation as device
}

deny contains r if {
	some device in common.devices_of("tpm")
	some r in tpm.ak_denials with input.attestation as device
}

deny contains r if some r in common.chip_networks_denials(1)
`

// TestComposite: a SIMULATED SEV-SNP guest with a real (software) TPM beside it,
// in one request.
func TestComposite(t *testing.T) {
	maker := testservers.NewTPMMaker(t)
	socket := maker.StartTPM(t, filepath.Join(t.TempDir(), "tpm"), "guest1")
	boot := testservers.NewBoot()
	boot.Extend(t, socket)
	b := Start(t, func(c *server.Config) {
		addPolicy(t, c, "composite", compositePolicy)
		c.Evidence.TPM = server.TPM{EKRoots: maker.Root, EKIntermediates: maker.Intermediate}
		c.Catalog = append(c.Catalog, server.Entry{Pattern: "both/{vm}", Source: "local", Key: "both/{vm}", Policy: "composite", CreateBytes: 32})
	})
	tpm := openTPM(t, socket, boot.Log(t))
	chip, err := tpm.ChipID()
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, values map[string]string) {
		t.Helper()
		set := &pb.ReferenceSet{Name: name, Type: "tpm", State: "active", Values: map[string]*pb.ReferenceValues{}}
		for claim, v := range values {
			set.Values[claim] = &pb.ReferenceValues{Values: []string{v}}
		}
		b.putReferences(t, set)
	}
	put("tpm-boot", boot.Values())
	client := func(first agent.Device, devices ...agent.Device) *agent.Client {
		t.Helper()
		return b.clientOf(t, first, devices...)
	}
	refused := func(c *agent.Client, want ...string) {
		t.Helper()
		denied(t, c, "both/vm-1")
		for _, w := range want {
			b.told(t, w)
		}
	}

	t.Run("the chip is enrolled", func(t *testing.T) {
		refused(client(nil, tpm), "chip_not_enrolled", chip)
		put("tpm-chips", map[string]string{"chip_id": chip})
		secrets, _ := get(t, client(nil, tpm), "both/vm-1")
		if len(secrets[0].Value) != 32 {
			t.Errorf("a key of %d bytes", len(secrets[0].Value))
		}
		b.told(t, `"devices":["tpm=`+chip+`"]`)
	})
	t.Run("left out", func(t *testing.T) { refused(client(nil), "tpm_missing") })
	t.Run("one TPM is not two", func(t *testing.T) { refused(client(nil, tpm, tpm), "a device comes twice") })
	t.Run("alone", func(t *testing.T) { refused(client(tpm), "not_bound_to_cpu_tee") })
	snp := b.Device(teesim.ReportOptions{})
	t.Run("the first does not vouch", func(t *testing.T) {
		refused(client(meddler{Device: snp, change: attest.Transcript.Alone}, tpm), "binding")
	})
	t.Run("exchanged on the way", func(t *testing.T) {
		// The TPM's quote of the same request, made once more: as good in itself, but not what the first one saw.
		var made attest.Evidence
		keep := meddler{Device: tpm, after: func(ev attest.Evidence) attest.Evidence { made = ev; return ev }}
		other := meddler{Device: snp, change: func(t attest.Transcript) attest.Transcript {
			made.EventLog = append(made.EventLog[:len(made.EventLog):len(made.EventLog)], 0)
			t.Devices = [][32]byte{made.Digest()}
			return t
		}}
		refused(client(other, keep), "binding")
	})
	t.Run("made for another request", func(t *testing.T) {
		refused(client(nil, meddler{Device: tpm, change: func(t attest.Transcript) attest.Transcript {
			t.Resources = []string{"both/vm-2"}
			return t
		}}), "binding")
	})
	t.Run("more than there can be", func(t *testing.T) {
		many := make([]agent.Device, attest.MaxDevices+1)
		for i := range many {
			many[i] = snp
		}
		_, _, err := client(nil, many...).Get(t.Context(), "both/vm-1")
		if err == nil || !strings.Contains(err.Error(), "evidence") {
			t.Errorf("got %v", err)
		}
	})
}
