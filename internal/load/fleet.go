package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/pemfile"
	"github.com/claviger/claviger/broker/tee/teesim"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// fleet is many guests on one simulated device.
type fleet struct {
	options
	agent agent.Config
	admin pb.AdminClient
	conn  *grpc.ClientConn
}

type device struct {
	*teesim.Device
	options teesim.ReportOptions
}

// Evidence implements agent.Device.
func (d device) Evidence(_ context.Context, t attest.Transcript) (attest.Evidence, error) {
	return d.Device.Evidence(t.Digest64(), d.options)
}

func newFleet(o options) (*fleet, error) {
	f := &fleet{options: o}
	dir := os.Getenv("CLAVIGER_DEV")
	if dir == "" {
		return nil, errors.New("no CLAVIGER_DEV: start `claviger dev` and source its env file")
	}
	dev, err := teesim.LoadDevice(filepath.Join(dir, "device.json"))
	if err != nil {
		return nil, err
	}
	pool, err := roots(os.Getenv("CLAVIGER_CA"))
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(os.Getenv("CLAVIGER_IDENTITY"))
	if err != nil {
		return nil, err
	}
	identity, err := pemfile.One(b, "PUBLIC KEY")
	if err != nil {
		return nil, fmt.Errorf("CLAVIGER_IDENTITY: %w", err)
	}
	f.agent = agent.Config{
		Address: os.Getenv("CLAVIGER_BROKER"), TLS: &tls.Config{RootCAs: pool}, Identity: identity,
		Device: device{dev, teesim.ReportOptions{Measurement: teesim.Measurement("")}},
	}
	pair, err := tls.LoadX509KeyPair(os.Getenv("CLAVIGER_ADMIN_CERT"), os.Getenv("CLAVIGER_ADMIN_KEY"))
	if err != nil {
		return nil, err
	}
	f.conn, err = grpc.NewClient(os.Getenv("CLAVIGER_ADMIN"), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: pool,
	})))
	if err != nil {
		return nil, err
	}
	f.admin = pb.NewAdminClient(f.conn)
	return f, nil
}

func roots(file string) (*x509.CertPool, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return pemfile.Pool(b)
}

func (f *fleet) close() { f.conn.Close() }

// numbered puts a guest's number into the name of a resource.
func numbered(resource string, i int) string {
	return strings.ReplaceAll(resource, "%d", strconv.Itoa(i))
}

// spread waits until it is guest i's turn.
func (f *fleet) spread(ctx context.Context, i int) {
	if f.over == 0 {
		return
	}
	select {
	case <-time.After(f.over * time.Duration(i) / time.Duration(f.guests)):
	case <-ctx.Done():
	}
}

// watch has all guests watch, rotates, and waits for all to have it each time.
func (f *fleet) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type arrival struct {
		value string
		at    time.Time
	}
	clients := make([]*agent.Client, cmp.Or(f.connections, f.guests))
	for i := range clients {
		c, err := agent.New(f.agent)
		if err != nil {
			return err
		}
		defer c.Close()
		clients[i] = c
	}
	arrivals := make(chan arrival, f.guests*2)
	failed := make(chan error, f.guests)
	start := time.Now()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for i := range f.guests {
		wg.Go(func() {
			f.spread(ctx, i)
			err := clients[i%len(clients)].Watch(ctx, []string{numbered(f.resource, i)}, func(_ context.Context, s agent.Secret) error {
				arrivals <- arrival{string(s.Value), time.Now()}
				return nil
			})
			if ctx.Err() == nil {
				failed <- err
			}
		})
	}
	wait := func(what, value string, since time.Time) error {
		var took []time.Duration
		for len(took) < f.guests {
			select {
			case a := <-arrivals:
				if value == "" || a.value == value {
					took = append(took, a.at.Sub(since))
				}
			case err := <-failed:
				return fmt.Errorf("a guest's watch ended: %w", err)
			case <-ctx.Done():
				return fmt.Errorf("%s: only %d of %d guests have it: %w", what, len(took), f.guests, ctx.Err())
			}
		}
		fmt.Printf("%-12s %d guests (SIMULATED): %s\n", what, f.guests, quantiles(took))
		return nil
	}
	if err := wait("attested", "", start); err != nil {
		return err
	}
	before := f.metric(ctx, sourceRequests)
	for i := range f.rotations {
		time.Sleep(2 * time.Second)
		value := rand.Text()
		at := time.Now()
		if err := f.write(ctx, value); err != nil {
			return err
		}
		if err := wait(fmt.Sprintf("rotation %d", i+1), value, at); err != nil {
			return err
		}
		if err := f.acknowledged(ctx, at); err != nil {
			return err
		}
	}
	if after := f.metric(ctx, sourceRequests); f.vault != "" && after > 0 {
		fmt.Printf("requests to Vault by the broker: %d in %d rotations (%s)\n", after-before, f.rotations, "polls of the version included")
	}
	return nil
}

// acknowledged waits until every guest counts as holder of the current version.
func (f *fleet) acknowledged(ctx context.Context, since time.Time) error {
	for {
		n, token := 0, ""
		var last time.Time
		var r *pb.ListHoldersResponse
		for first := true; first || token != ""; first = false {
			var err error
			if r, err = f.admin.ListHolders(ctx, &pb.ListHoldersRequest{Resource: f.resource, PageToken: token}); err != nil {
				return fmt.Errorf("list holders: %w", err)
			}
			for _, h := range r.GetHolders() {
				if h.GetVersion() == r.GetCurrentVersion() && h.GetAcknowledgedAt().AsTime().After(since) {
					n++
					if t := h.GetAcknowledgedAt().AsTime(); t.After(last) {
						last = t
					}
				}
			}
			token = r.GetNextPageToken()
		}
		if n >= f.guests {
			fmt.Printf("             %d of %d acknowledged version %s, the last %s after the write\n", n, f.guests, r.GetCurrentVersion(), last.Sub(since).Round(time.Millisecond))
			return nil
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *fleet) write(ctx context.Context, value string) error {
	if f.vault == "" {
		_, err := f.admin.PutSecret(ctx, &pb.PutSecretRequest{Key: f.resource, Value: []byte(value)})
		return err
	}
	body, err := json.Marshal(map[string]any{"data": map[string]string{"value": value}})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.vault, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("X-Vault-Token", f.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("write to vault: %s: %s", resp.Status, b)
	}
	return nil
}

const sourceRequests = "claviger_source_requests_total"

// metric reads the broker's own count from its metrics, the sum of all labels; 0 if it tells none.
func (f *fleet) metric(ctx context.Context, name string) int {
	addr := os.Getenv("CLAVIGER_METRICS")
	if addr == "" {
		return 0
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return 0
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return 0
	}
	total := 0
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, name+"{") || strings.HasPrefix(line, name+" ") {
			var n float64
			if _, err := fmt.Sscan(line[strings.LastIndex(line, " ")+1:], &n); err == nil {
				total += int(n)
			}
		}
	}
	return total
}

func quantiles(d []time.Duration) string {
	if len(d) == 0 {
		return "none"
	}
	slices.Sort(d)
	at := func(q float64) time.Duration { return d[min(int(q*float64(len(d))), len(d)-1)].Round(time.Millisecond) }
	return fmt.Sprintf("p50 %s, p99 %s, last %s", at(.5), at(.99), at(1))
}
