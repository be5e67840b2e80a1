package dcap

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// Level is a TCB level that Intel published for one part of the platform; as a
// claim it bears Intel's names.
type Level struct {
	Status     string    `json:"tcb_status"` // as Intel writes it
	Date       time.Time `json:"tcb_date"`
	Advisories []string  `json:"advisory_ids"`
}

func (l *tcbLevel) level() *Level {
	return &Level{Status: l.Status, Date: l.Date, Advisories: append([]string{}, l.AdvisoryIDs...)}
}

// platformLevel finds the platform's TCB level: the first whose SVNs are all
// reached. td is nil for SGX.
func platformLevel(info *tcbInfo, pck *PCK, td *TDReport) (*Level, error) {
	for i := range info.TCBLevels {
		l := &info.TCBLevels[i]
		if reached(pck.Components, l.TCB.SGX, 0) && pck.PCESVN >= *l.TCB.PCESVN &&
			(td == nil || reached(td.TEETCBSVN, l.TCB.TDX, moduleComponents(td))) {
			return l.level(), nil
		}
	}
	return nil, unsupported("the platform's TCB is below every level that Intel published")
}

func reached(have [16]uint8, want []component, from int) bool {
	for i := from; i < len(have); i++ {
		if have[i] < want[i].SVN {
			return false
		}
	}
	return true
}

// moduleComponents is how many leading components of TEE_TCB_SVN belong to the
// TDX module and have levels of their own: byte 1 is the module's major
// version, and from 1 on the module's identity takes the place of bytes 0 and 1.
func moduleComponents(td *TDReport) int {
	if td.TEETCBSVN[1] > 0 {
		return 2
	}
	return 0
}

// moduleLevel checks who signed the TDX module and finds its level; the level
// is nil for modules of version 0, which have none of their own.
func moduleLevel(info *tcbInfo, td *TDReport) (*Level, error) {
	m := info.TDXModule
	if moduleComponents(td) > 0 {
		id := fmt.Sprintf("TDX_%02x", td.TEETCBSVN[1])
		i := slices.IndexFunc(info.TDXModuleIdentities, func(m moduleIdentity) bool { return strings.EqualFold(m.ID, id) })
		if i < 0 {
			return nil, unsupported("no identity %s in the TCB info", id)
		}
		m = &info.TDXModuleIdentities[i]
	}
	// A module of another signer, or a debug module, could write any report.
	if !bytes.Equal(td.MRSIGNERSEAM[:], m.MRSigner) {
		return nil, faultf(attest.ReasonMismatch, "MRSIGNERSEAM %x is not the TDX module's signer", td.MRSIGNERSEAM)
	}
	if !equalMasked(td.SEAMATTRIBUTES[:], m.Attributes, m.AttributesMask) {
		return nil, faultf(attest.ReasonMismatch, "SEAMATTRIBUTES %x, want %x", td.SEAMATTRIBUTES, []byte(m.Attributes))
	}
	if moduleComponents(td) == 0 {
		return nil, nil
	}
	for i := range m.TCBLevels {
		if l := &m.TCBLevels[i]; uint16(td.TEETCBSVN[0]) >= *l.TCB.ISVSVN {
			return l.level(), nil
		}
	}
	return nil, unsupported("TDX module SVN %d is below every level that Intel published", td.TEETCBSVN[0])
}

// qeLevel checks that the enclave that signed the quote is Intel's quoting
// enclave, and finds its level.
func qeLevel(id *qeIdentity, qe *EnclaveReport) (*Level, error) {
	switch {
	case !equalMasked(qe.MISCSELECT[:], id.MISCSELECT, id.MISCSELECTMask):
		return nil, faultf(attest.ReasonMismatch, "QE MISCSELECT %x, want %x", qe.MISCSELECT, []byte(id.MISCSELECT))
	case !equalMasked(qe.ATTRIBUTES[:], id.Attributes, id.AttributesMask):
		return nil, faultf(attest.ReasonMismatch, "QE ATTRIBUTES %x, want %x", qe.ATTRIBUTES, []byte(id.Attributes))
	case !bytes.Equal(qe.MRSIGNER[:], id.MRSIGNER):
		return nil, faultf(attest.ReasonMismatch, "QE MRSIGNER %x, want %x", qe.MRSIGNER, []byte(id.MRSIGNER))
	case qe.ISVPRODID != *id.ISVPRODID:
		return nil, faultf(attest.ReasonMismatch, "QE ISVPRODID %d, want %d", qe.ISVPRODID, *id.ISVPRODID)
	}
	for i := range id.TCBLevels {
		if l := &id.TCBLevels[i]; qe.ISVSVN >= *l.TCB.ISVSVN {
			return l.level(), nil
		}
	}
	// Intel's verifier takes an enclave below every level for revoked.
	return nil, faultf(attest.ReasonRevoked, "QE ISVSVN %d is below every level that Intel published", qe.ISVSVN)
}

// equalMasked compares have&mask with want, which Intel publishes masked.
func equalMasked(have, want, mask []byte) bool {
	for i := range have {
		if have[i]&mask[i] != want[i]&mask[i] {
			return false
		}
	}
	return true
}

// Faults that a TCB status stands for.
const (
	needsHardening = 1 << iota
	needsConfiguration
	outOfDate
	revoked
)

// converge folds the levels of platform, TDX module and QE into one state: a
// fault of any part is a fault of the whole. It agrees with Intel's quote
// verification library, where an out-of-date module or QE turns UpToDate and
// SWHardeningNeeded into OutOfDate, and the two Configuration… states into
// OutOfDateConfigurationNeeded.
func converge(levels ...*Level) (attest.TCB, error) {
	tcb := attest.TCB{Advisories: []string{}}
	var faults int
	for _, l := range levels {
		if l == nil {
			continue
		}
		switch l.Status {
		case attest.TCBUpToDate:
		case attest.TCBSWHardeningNeeded:
			faults |= needsHardening
		case attest.TCBConfigurationNeeded:
			faults |= needsConfiguration
		case attest.TCBConfigAndSWHardening:
			faults |= needsConfiguration | needsHardening
		case attest.TCBOutOfDate:
			faults |= outOfDate
		case attest.TCBOutOfDateConfiguration:
			faults |= outOfDate | needsConfiguration
		case attest.TCBRevoked:
			faults |= revoked
		default:
			return tcb, unsupported("TCB status %q", l.Status)
		}
		tcb.Advisories = append(tcb.Advisories, l.Advisories...)
		if tcb.Date == nil || l.Date.Before(*tcb.Date) {
			tcb.Date = &l.Date
		}
	}
	slices.Sort(tcb.Advisories)
	tcb.Advisories = slices.Compact(tcb.Advisories)
	switch {
	case faults&revoked != 0:
		tcb.Status = attest.TCBRevoked
	case faults&outOfDate != 0 && faults&needsConfiguration != 0:
		tcb.Status = attest.TCBOutOfDateConfiguration
	case faults&outOfDate != 0:
		tcb.Status = attest.TCBOutOfDate
	case faults == needsConfiguration|needsHardening:
		tcb.Status = attest.TCBConfigAndSWHardening
	case faults == needsConfiguration:
		tcb.Status = attest.TCBConfigurationNeeded
	case faults == needsHardening:
		tcb.Status = attest.TCBSWHardeningNeeded
	default:
		tcb.Status = attest.TCBUpToDate
	}
	return tcb, nil
}
