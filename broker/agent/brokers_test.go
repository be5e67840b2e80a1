package agent_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/brokertest"
	"github.com/claviger/claviger/broker/tee/teesim"
)

// listen accepts and never says a word: a broker that hangs.
func listen(t *testing.T, accepted *atomic.Int32) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			t.Cleanup(func() { c.Close() })
		}
	}()
	return l.Addr().String()
}

func client(t *testing.T, b *brokertest.Broker, change func(*agent.Config)) *agent.Client {
	t.Helper()
	roots, err := b.Env.Roots()
	if err != nil {
		t.Fatal(err)
	}
	addr, _, _ := b.Server.Addresses()
	cfg := agent.Config{Address: addr, TLS: &tls.Config{RootCAs: roots}, Identity: b.Server.Identity(), Device: b.Device(teesim.ReportOptions{}), Logf: t.Logf}
	change(&cfg)
	c, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestSeveralBrokers: brokers that hang or are gone cost seconds, wherever in the list the good one stands.
func TestSeveralBrokers(t *testing.T) {
	b := brokertest.Start(t, nil)
	addr, _, _ := b.Server.Addresses()
	var hung atomic.Int32
	var wg sync.WaitGroup
	hangs, gone := listen(t, &hung), "127.0.0.1:1"
	for _, list := range []string{hangs + "," + gone + "," + addr, addr + ", " + hangs, gone + "," + addr} {
		for range 3 { // it starts at a random one
			wg.Go(func() {
				c := client(t, b, func(cfg *agent.Config) { cfg.Address = list })
				ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
				defer cancel()
				if s, _, err := c.Get(ctx, "disks/vm-1"); err != nil || len(s[0].Value) != 32 {
					t.Errorf("%s: %v", list, err)
				}
			})
		}
	}
	wg.Wait()
	c := client(t, b, func(cfg *agent.Config) { cfg.Address = gone + ",127.0.0.1:2" })
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, _, err := c.Get(ctx, "disks/vm-1"); !errors.Is(err, agent.ErrUnreachable) {
		t.Errorf("got %v", err)
	}
}

func TestBrokerAddress(t *testing.T) {
	b := brokertest.Start(t, nil)
	roots, err := b.Env.Roots()
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "broker", "a:1,b"} {
		if _, err := agent.New(agent.Config{Address: bad, TLS: &tls.Config{RootCAs: roots}, Identity: []byte{1}, Device: b.Device(teesim.ReportOptions{})}); err == nil || !strings.Contains(err.Error(), "host:port") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestWrongClock: a person at a console is told whose time is wrong.
func TestWrongClock(t *testing.T) {
	b := brokertest.Start(t, nil)
	built := time.Now().Add(-24 * time.Hour)
	for want, now := range map[string]time.Time{
		"before claviger-agent was built": time.Unix(3600, 0),
		"is not valid before":             time.Now().Add(-12 * time.Hour),
	} {
		c := client(t, b, func(cfg *agent.Config) {
			cfg.Built, cfg.Now = built, func() time.Time { return now }
		})
		ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
		_, _, err := c.Get(ctx, "disks/vm-1")
		cancel()
		if !errors.Is(err, agent.ErrUnreachable) || !strings.Contains(err.Error(), want) {
			t.Errorf("at %s: got %v, want %q", now, err, want)
		}
	}
	// An expired certificate is final, unless another broker has a better one.
	late := func(cfg *agent.Config) {
		cfg.Built, cfg.Now = built, func() time.Time { return time.Now().Add(90 * 24 * time.Hour) }
	}
	if _, _, err := client(t, b, late).Get(t.Context(), "disks/vm-1"); !errors.Is(err, agent.ErrExpired) || errors.Is(err, agent.ErrUnreachable) || !strings.Contains(err.Error(), "looks right") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	_, _, err := client(t, b, func(cfg *agent.Config) {
		late(cfg)
		cfg.Address += ",127.0.0.1:1"
	}).Get(ctx, "disks/vm-1")
	if !errors.Is(err, agent.ErrUnreachable) {
		t.Errorf("with another broker: %v", err)
	}
	// A watch goes on: to end it would wipe the secrets of a workload that runs.
	ctx, cancel = context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	err = client(t, b, late).Watch(ctx, []string{"disks/vm-1"}, func(context.Context, agent.Secret) error { return nil })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("watch: %v", err)
	}
	// A clock that is mended meanwhile is seen.
	var right atomic.Bool
	c := client(t, b, func(cfg *agent.Config) {
		cfg.Now = func() time.Time {
			if right.Load() {
				return time.Now()
			}
			return time.Unix(3600, 0)
		}
	})
	time.AfterFunc(300*time.Millisecond, func() { right.Store(true) })
	if _, _, err := c.Get(t.Context(), "disks/vm-1"); err != nil {
		t.Error(err)
	}
}

// TestMissing: what the machine lacks is said with the error, and asked for again each time.
func TestMissing(t *testing.T) {
	b := brokertest.Start(t, nil)
	n := 0
	c := client(t, b, func(cfg *agent.Config) {
		cfg.Address, cfg.Missing = "127.0.0.1:1", func(error) string { n++; return fmt.Sprintf("eth0 has no link, said %d times", n) }
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, _, err := c.Get(ctx, "disks/vm-1"); err == nil || !strings.Contains(err.Error(), "eth0 has no link") {
		t.Errorf("got %v", err)
	}
	if n < 2 {
		t.Errorf("asked %d times", n)
	}
}

// TestZone: an IPv6 address may have a zone, which the broker's certificate does not name.
func TestZone(t *testing.T) {
	b := brokertest.Start(t, nil)
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("no IPv6 here: %v", err)
	}
	t.Cleanup(func() { l.Close() })
	addr, _, _ := b.Server.Addresses()
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", addr)
			if err != nil {
				from.Close()
				continue
			}
			go func() { _, _ = io.Copy(to, from); to.Close() }()
			go func() { _, _ = io.Copy(from, to); from.Close() }()
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := client(t, b, func(cfg *agent.Config) { cfg.Address = "[::1%lo]:" + port })
	if _, _, err := c.Get(t.Context(), "disks/vm-1"); err != nil {
		t.Error(err)
	}
}
