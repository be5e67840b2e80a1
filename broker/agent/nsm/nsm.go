// Package nsm makes evidence in an AWS Nitro enclave: it asks the Nitro Secure
// Module for an attestation document, through Linux's /dev/nsm (6.8 and later,
// and AWS's own driver before).
//
// Sources: include/uapi/linux/nsm.h; the requests of aws-nitro-enclaves-nsm-api.
package nsm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/sys/unix"

	"github.com/claviger/claviger/broker/attest"
)

// DefaultPath is the module's device.
const DefaultPath = "/dev/nsm"

// Limits and command of linux/nsm.h.
const (
	maxRequest  = 0x1000
	maxResponse = 0x3000
	ioctlRaw    = 0xc0200a00 // _IOWR(0x0A, 0, struct nsm_raw)
)

// Device is a Nitro Secure Module.
type Device struct {
	// exchange sends a request and returns the response, both in CBOR. The kernel lies behind it.
	exchange func(request []byte) ([]byte, error)
}

// Open names the module's device, which is opened for each document.
func Open(path string) *Device {
	return &Device{exchange: func(request []byte) ([]byte, error) { return ioctl(path, request) }}
}

// Evidence implements agent.Device: the digest of the transcript goes into user_data.
func (d *Device) Evidence(ctx context.Context, t attest.Transcript) (attest.Evidence, error) {
	return d.Raw(ctx, t.Digest64())
}

// Raw makes a document over given user_data, which binds it to nothing of ours.
func (d *Device) Raw(ctx context.Context, userData [64]byte) (attest.Evidence, error) {
	if err := ctx.Err(); err != nil {
		return attest.Evidence{}, err
	}
	request, err := cbor.Marshal(map[string]any{"Attestation": map[string]any{"user_data": userData[:], "nonce": nil, "public_key": nil}})
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("encode request to the Nitro Secure Module: %w", err)
	}
	b, err := d.exchange(request)
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("ask the Nitro Secure Module: %w", err)
	}
	document, err := parse(b)
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("response of the Nitro Secure Module: %w", err)
	}
	return attest.Evidence{Type: attest.TypeNitro, Report: document}, nil
}

// parse reads {"Attestation": {"document": bytes}}, or {"Error": text}.
func parse(b []byte) ([]byte, error) {
	var response struct {
		Attestation struct {
			Document []byte `cbor:"document"`
		} `cbor:"Attestation"`
		Error string `cbor:"Error"`
	}
	if err := cbor.Unmarshal(b, &response); err != nil {
		return nil, err
	}
	if response.Error != "" {
		return nil, fmt.Errorf("error %q", response.Error)
	}
	if len(response.Attestation.Document) == 0 {
		return nil, errors.New("no document")
	}
	return response.Attestation.Document, nil
}

// iovec and raw are struct nsm_iovec and struct nsm_raw of linux/nsm.h.
type iovec struct{ addr, len uint64 }

type raw struct{ request, response iovec }

func ioctl(path string, request []byte) ([]byte, error) {
	if len(request) > maxRequest {
		return nil, fmt.Errorf("request of %d bytes", len(request))
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	response := make([]byte, maxResponse)
	// The kernel reads and writes where these numbers say; the collector must know, too.
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&request[0])
	pin.Pin(&response[0])
	msg := &raw{
		request:  iovec{uint64(uintptr(unsafe.Pointer(&request[0]))), uint64(len(request))},
		response: iovec{uint64(uintptr(unsafe.Pointer(&response[0]))), uint64(len(response))},
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ioctlRaw, uintptr(unsafe.Pointer(msg))); errno != 0 {
		return nil, fmt.Errorf("ioctl on %s: %w", path, errno)
	}
	if msg.response.len > maxResponse {
		return nil, fmt.Errorf("response of %d bytes", msg.response.len)
	}
	return response[:msg.response.len], nil
}
