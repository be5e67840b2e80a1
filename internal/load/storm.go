package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/attest"
)

// class is what became of the guests that ask for one kind of secret.
type class struct {
	name                    string
	started, denied, failed int
	took                    []time.Duration // of those served: from the guest's start to the opened secret
	attempts                []int           // likewise
}

// storm has each guest fetch once, as a fleet does that boots after a power cut:
// disk keys and, by some, application secrets at the same time. Each guest has
// a connection, a key and evidence of its own.
func (f *fleet) storm(ctx context.Context) error {
	fmt.Printf("%d guests (SIMULATED, all on one simulated chip) start within %s\n", f.guests, f.over)
	disks, apps := &class{name: "disk keys"}, &class{name: "application secrets"}
	keys := map[[32]byte]int{} // the digest of each disk key, and which guest has it
	var mu sync.Mutex          // guards the three and what they point to
	longest := f.longestQueue(ctx)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range f.guests {
		wg.Go(func() {
			f.spread(ctx, i)
			c, resource := disks, numbered(f.resource, i)
			if f.also != "" && i%10 == 0 {
				c, resource = apps, numbered(f.also, i)
			}
			at := time.Now()
			digest, attempts, err := f.boot(ctx, resource, c == disks)
			took := time.Since(at)
			mu.Lock()
			defer mu.Unlock()
			c.started++
			if other, ok := keys[digest]; err == nil && c == disks && ok {
				err = fmt.Errorf("guests %d and %d have the same disk key", other, i)
			}
			switch {
			case errors.Is(err, agent.ErrDenied):
				c.denied++
			case err != nil:
				if c.failed++; c.failed == 1 {
					fmt.Fprintf(os.Stderr, "%s, the first failure: %v\n", c.name, err)
				}
			default:
				c.took, c.attempts = append(c.took, took), append(c.attempts, attempts)
				if c == disks {
					keys[digest] = i
				}
			}
		})
	}
	wg.Wait()
	all := time.Since(start)
	for _, c := range []*class{disks, apps} {
		fmt.Printf("%-20s started %d, served %d, denied %d, failed %d; %s; %s\n", c.name, c.started, len(c.took), c.denied, c.failed, quantiles(c.took), attemptsOf(c.attempts))
	}
	served := len(disks.took) + len(apps.took)
	fmt.Printf("%d of %d served in %s, %.0f/s; at most %d in the queue (seen every 100 ms), %d displaced in the broker's life\n",
		served, f.guests, all.Round(time.Millisecond), float64(served)/all.Seconds(), longest(), f.metric(ctx, "claviger_queue_displaced_total"))
	if served < f.guests {
		return fmt.Errorf("%d guests got nothing", f.guests-served)
	}
	return f.bootAgain(ctx, keys)
}

// boot is one guest: it fetches, opens and checks its secret and returns its
// digest and how often it sent evidence.
func (f *fleet) boot(ctx context.Context, resource string, disk bool) (digest [32]byte, attempts int, err error) {
	cfg, counted := f.agent, &counting{Device: f.agent.Device}
	cfg.Device = counted
	c, err := agent.New(cfg)
	if err != nil {
		return digest, 0, err
	}
	defer c.Close() // a guest that boots goes its way
	secrets, _, err := c.Get(ctx, resource)
	if err != nil {
		return digest, int(counted.n.Load()), err
	}
	defer secrets[0].Wipe()
	if n := len(secrets[0].Value); disk && n != 32 {
		return digest, 0, fmt.Errorf("%s: a key of %d bytes, want 32", resource, n)
	}
	return sha256.Sum256(secrets[0].Value), int(counted.n.Load()), nil
}

// bootAgain has some guests fetch their disk keys again: they must be the same ones.
func (f *fleet) bootAgain(ctx context.Context, keys map[[32]byte]int) error {
	n := 0
	for before, i := range keys {
		after, _, err := f.boot(ctx, numbered(f.resource, i), true)
		if err != nil {
			return fmt.Errorf("guest %d boots again: %w", i, err)
		}
		if after != before {
			return fmt.Errorf("guest %d has another key when it boots again", i)
		}
		if n++; n == 20 {
			break
		}
	}
	fmt.Printf("%d different disk keys of 32 bytes; %d guests that boot again get the same\n", len(keys), n)
	return nil
}

// longestQueue watches the broker's metrics until it is called back.
func (f *fleet) longestQueue(ctx context.Context) func() int {
	ctx, cancel := context.WithCancel(ctx)
	longest := make(chan int, 1)
	go func() {
		n := 0
		for ctx.Err() == nil {
			n = max(n, f.metric(ctx, "claviger_queue_waiting"))
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		longest <- n
	}()
	return func() int { cancel(); return <-longest }
}

// counting counts the attempts that got as far as evidence.
type counting struct {
	agent.Device
	n atomic.Int64
}

// Evidence implements agent.Device.
func (c *counting) Evidence(ctx context.Context, t attest.Transcript) (attest.Evidence, error) {
	c.n.Add(1)
	return c.Device.Evidence(ctx, t)
}

func attemptsOf(n []int) string {
	if len(n) == 0 {
		return "no attempts"
	}
	sum := 0
	for _, a := range n {
		sum += a
	}
	return fmt.Sprintf("attempts: mean %.2f, most %d", float64(sum)/float64(len(n)), slices.Max(n))
}
