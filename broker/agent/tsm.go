package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	"github.com/google/go-configfs-tsm/report"

	"github.com/claviger/claviger/broker/attest"
)

// ccelPath is where Linux shows the CC event log (ACPI table CCEL).
const ccelPath = "/sys/firmware/acpi/tables/data/CCEL"

// TSM is the device behind Linux's configfs-tsm (/sys/kernel/config/tsm/report, Linux 6.7 and later).
type TSM struct{}

// Evidence implements Device.
func (d TSM) Evidence(ctx context.Context, t attest.Transcript) (attest.Evidence, error) {
	return d.Raw(ctx, t.Digest64())
}

// Raw makes evidence over given report data, which binds it to nothing of ours.
func (TSM) Raw(_ context.Context, reportData [64]byte) (attest.Evidence, error) {
	client, err := linuxtsm.MakeClient()
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("open configfs-tsm (is this a confidential VM, and configfs mounted?): %w", err)
	}
	return collect(client, reportData)
}

const providerSNP = "sev_guest"

func collect(client configfsi.Client, reportData [64]byte) (attest.Evidence, error) {
	open, err := report.Create(client, &report.Request{InBlob: reportData[:]})
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("open report of configfs-tsm: %w", err)
	}
	defer open.Destroy() // an entry that stays behind harms nobody
	name, err := open.ReadOption("provider")
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("ask configfs-tsm who it is: %w", err)
	}
	provider := strings.TrimSpace(string(name)) // Linux ends it with a newline
	// TDX has nothing there, and Linux then shows no such file (tdx-guest.c).
	open.GetAuxBlob = provider == providerSNP
	r, err := open.Get()
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("get report from configfs-tsm: %w", err)
	}
	switch provider {
	case providerSNP:
		return attest.Evidence{Type: attest.TypeSNP, Report: r.OutBlob, Endorsements: r.AuxBlob}, nil
	case "tdx_guest":
		log, err := eventLog(ccelPath)
		return attest.Evidence{Type: attest.TypeTDX, Report: r.OutBlob, EventLog: log}, err
	case "arm_cca_guest": // as Linux names it (arm-cca-guest.c); not tried on hardware
		return attest.Evidence{Type: attest.TypeCCA, Report: r.OutBlob}, nil
	}
	return attest.Evidence{}, fmt.Errorf("configfs-tsm provider %q is not supported", provider)
}

const (
	maxLogFile = 8 << 20 // as firmware lays it out, padding included
	// keptPadding bytes stay behind the last byte that is not padding: an event's data may end in 0xff.
	keptPadding = 64
)

// eventLog reads the log if the firmware keeps one, without the padding that fills its area.
func eventLog(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open event log: %w", err)
	}
	defer f.Close()
	log, err := io.ReadAll(io.LimitReader(f, maxLogFile))
	if err != nil {
		return nil, fmt.Errorf("read event log: %w", err)
	}
	if n := len(bytes.TrimRight(log, "\xff")); n+keptPadding < len(log) {
		log = log[:n+keptPadding]
	}
	if len(log) > attest.MaxEventLogSize {
		return nil, fmt.Errorf("event log %s has %d bytes, at most %d are accepted", path, len(log), attest.MaxEventLogSize)
	}
	return log, nil
}
