package main

import (
	"context"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// hanging is a device that cannot be closed while it does not answer.
type hanging struct{ held chan struct{} }

func (hanging) Evidence(context.Context, attest.Transcript) (attest.Evidence, error) {
	return attest.Evidence{}, nil
}

func (h hanging) Close() error { <-h.held; return nil }

// TestLetGo: a device that hangs does not keep the process from ending.
func TestLetGo(t *testing.T) {
	h := hanging{make(chan struct{})}
	defer close(h.held)
	done := make(chan struct{})
	go func() { letGo(h); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("waits for the device")
	}
}
