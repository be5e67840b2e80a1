package server

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/audit"
	"github.com/claviger/claviger/broker/collateral"
	"github.com/claviger/claviger/broker/etcd"
	"github.com/claviger/claviger/broker/feed"
	"github.com/claviger/claviger/broker/local"
	"github.com/claviger/claviger/broker/pemfile"
	"github.com/claviger/claviger/broker/reread"
	"github.com/claviger/claviger/broker/rpc"
	"github.com/claviger/claviger/broker/seal"
	"github.com/claviger/claviger/broker/state"
	"github.com/claviger/claviger/broker/tee"
	"github.com/claviger/claviger/broker/tee/cca"
	"github.com/claviger/claviger/broker/tee/keystone"
	"github.com/claviger/claviger/broker/tee/nitro"
	"github.com/claviger/claviger/broker/tee/nvidia"
	"github.com/claviger/claviger/broker/tee/psa"
	"github.com/claviger/claviger/broker/tee/results"
	"github.com/claviger/claviger/broker/tee/snp"
	"github.com/claviger/claviger/broker/tee/tpm"
	"github.com/claviger/claviger/broker/telemetry"
	"github.com/claviger/claviger/broker/token"
	"github.com/claviger/claviger/broker/vault"
	"github.com/claviger/claviger/policy"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// Options are what no configuration file can say.
type Options struct {
	Version string
	Logger  *slog.Logger
	// TestRoots makes simulated hardware acceptable. Only `claviger dev` and brokertest set it.
	TestRoots []tee.TestRoot
}

// Server is a running broker.
type Server struct {
	cfg     Config
	opt     Options
	log     *slog.Logger
	started time.Time

	kv         *etcd.Store
	state      *state.State
	secrets    *local.Store
	sources    map[string]broker.Source
	feed       *feed.Feed
	tokens     *token.Source
	vaults     []*vault.Source // as in cfg.Vault
	audit      *audit.Log
	index      *audit.Index
	known      known // what can be revoked
	outside    surroundings
	turnedAway rpc.Refusals // operators
	files      []*trustFile
	engine     *policy.Engine
	collateral *collateral.Source
	broker     *broker.Broker
	id         *seal.Identity

	workloads, admin *grpc.Server
	metrics          *telemetry.Metrics
	metricsServer    *http.Server
	admission        *rpc.Admission
	gate             *rpc.Gate
	health           *health.Server
	addr, adminAddr  net.Addr
	metricsAddr      net.Addr
	tokensServer     *http.Server
	tokensAddr       net.Addr

	cancel context.CancelFunc
	wg     sync.WaitGroup
	failed chan error
	close  []func(context.Context) error // in reverse order
}

// Start brings everything up, in the order of dependence, and returns when the
// broker serves. What it started before a failure is stopped again.
func Start(ctx context.Context, cfg Config, opt Options) (_ *Server, err error) {
	if err := cfg.Complete(); err != nil {
		return nil, err
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, opt: opt, log: opt.Logger, started: time.Now(), failed: make(chan error, 8)}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	s.files = s.trustFiles() // looked at before they are read
	defer func() {
		if err != nil {
			_ = s.Close(context.WithoutCancel(ctx))
		}
	}()
	for _, dir := range []struct{ field, path string }{{"data_dir", cfg.DataDir}, {"audit.dir", cfg.Audit.Dir}} {
		if dir.field == "audit.dir" && filepath.Clean(dir.path) == filepath.Clean(cfg.DataDir) {
			continue
		}
		if err := s.takeDir(dir.path); err != nil {
			return nil, fmt.Errorf("%s: %w", dir.field, err)
		}
	}
	for _, step := range []func(ctx, run context.Context) error{
		s.openState, s.openAudit, s.openPolicy, s.openBroker, s.follow, s.serveMetrics, s.serveTokens, s.serveWorkloads, s.serveAdmin,
	} {
		if err := step(ctx, run); err != nil {
			return nil, err
		}
	}
	s.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	return s, nil
}

// takeDir makes a folder that nobody else writes to, before anything is written there.
func (s *Server) takeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := checkOwner(dir); err != nil {
		return err
	}
	release, err := Lock(dir)
	if err != nil {
		return err
	}
	s.onClose(func(context.Context) error { release(); return nil })
	return nil
}

func (s *Server) openState(ctx, _ context.Context) error {
	key, err := s.sealKey()
	if err != nil {
		return err
	}
	if len(s.cfg.Etcd.Endpoints) == 0 {
		s.kv, err = etcd.StartMember(ctx, etcd.Member{Dir: filepath.Join(s.cfg.DataDir, "state"), Quota: s.cfg.Etcd.QuotaMiB << 20, Logger: s.log})
	} else {
		var c etcd.Cluster
		if c, err = s.cluster(); err == nil {
			s.kv, err = etcd.Dial(ctx, c)
		}
	}
	if err != nil {
		return err
	}
	s.onClose(func(context.Context) error { return s.kv.Close() })
	s.state, err = state.New(state.Config{KV: s.kv, SealKey: key, Logger: s.log})
	if err != nil {
		return err
	}
	s.secrets = local.New(s.kv, s.state, nil)
	seed, err := s.state.SealedKey(ctx, "identity", state.GenerateKey32)
	if err != nil {
		return fmt.Errorf("broker identity: %w", err)
	}
	s.id, err = seal.IdentityFromSeed(seed)
	return err
}

// sealKey reads the key that encrypts state at rest; with embedded state it is made on first start.
func (s *Server) sealKey() ([]byte, error) {
	path := s.cfg.SealKey
	if path == "" {
		path = filepath.Join(s.cfg.DataDir, "seal.key")
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			if _, err := os.Stat(filepath.Join(s.cfg.DataDir, "state")); err == nil {
				return nil, fmt.Errorf("seal_key_file: %s is missing, but there is state that was sealed with it: restore it from your backup", path)
			}
			key, err := state.GenerateKey32()
			if err != nil {
				return nil, fmt.Errorf("make seal key: %w", err)
			}
			if err := os.WriteFile(path, []byte(hex.EncodeToString(key)+"\n"), 0o600); err != nil {
				return nil, fmt.Errorf("write seal key: %w", err)
			}
			s.log.Warn("made a new seal key: back it up, without it the embedded secrets are lost", "path", path)
			return key, nil
		}
	}
	if err := checkPrivate(path); err != nil {
		return nil, fmt.Errorf("seal_key_file: %w", err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("seal_key_file: %w", err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil && len(b) == 32 { // 32 hex digits are half a key, not one
		return b, nil
	}
	if err != nil || len(key) != 32 {
		return nil, fmt.Errorf("seal_key_file: %s holds neither 32 bytes nor 64 hex digits", path)
	}
	return key, nil
}

func (s *Server) cluster() (etcd.Cluster, error) {
	e := s.cfg.Etcd
	c := etcd.Cluster{Endpoints: e.Endpoints, Username: e.Username, Logger: s.log}
	if e.PasswordFile != "" {
		password, err := reread.Open(tell(s.log, e.PasswordFile), func(b [][]byte) (string, error) {
			p := strings.TrimSpace(string(b[0]))
			if p == "" {
				return "", fmt.Errorf("%s is empty", e.PasswordFile)
			}
			return p, nil
		}, e.PasswordFile)
		if err != nil {
			return c, fmt.Errorf("etcd.password_file: %w", err)
		}
		c.Password = password.Get
	}
	if e.CA == "" && e.Cert == "" && !slices.ContainsFunc(e.Endpoints, func(u string) bool { return strings.HasPrefix(u, "https://") }) {
		return c, nil
	}
	c.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	if e.CA != "" {
		pool, err := openPool(s.log, e.CA)
		if err != nil {
			return c, fmt.Errorf("etcd.ca: %w", err)
		}
		c.TLS.RootCAs, c.Roots = pool.Get(), pool.Get
	}
	if e.Cert != "" {
		pair, err := openPair(s.log, e.Cert, e.Key)
		if err != nil {
			return c, fmt.Errorf("etcd.cert: %w", err)
		}
		c.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair.Get(), nil }
	}
	return c, nil
}

// openAudit opens this broker's own log; its key is sealed in the shared state under the log's name.
func (s *Server) openAudit(ctx, run context.Context) error {
	pair, err := s.state.SealedKey(ctx, "audit/"+s.cfg.Audit.Origin, func() ([]byte, error) {
		signer, verifier, err := audit.GenerateKey(rand.Reader, s.cfg.Audit.Origin)
		return []byte(signer + "\n" + verifier), err
	})
	if err != nil {
		return fmt.Errorf("audit log key: %w", err)
	}
	signer, verifier, ok := strings.Cut(string(pair), "\n")
	if !ok {
		return errors.New("audit log key: sealed value is malformed")
	}
	s.audit, err = audit.Open(ctx, s.cfg.Audit.Dir, signer, verifier)
	if err != nil {
		return err
	}
	s.onClose(s.audit.Close)
	s.index, err = audit.OpenIndex(s.audit.Reader, filepath.Join(s.cfg.DataDir, "audit-index"))
	if err != nil {
		return err
	}
	s.onClose(func(context.Context) error { return s.index.Close() })
	s.spawn("audit index", func() error { return s.followLog(run) })
	// Beside the log, so that an auditor with a copy of the folder has all that `claviger audit verify` needs.
	return os.WriteFile(filepath.Join(s.cfg.Audit.Dir, "log.vkey"), []byte(verifier+"\n"), 0o644)
}

// followLog keeps the index up to date, and removes what the log need not keep.
func (s *Server) followLog(ctx context.Context) error {
	var pruned time.Time
	for {
		if err := s.index.CatchUp(ctx); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "the index of the audit log is behind", "error", err)
		}
		if keep := time.Duration(s.cfg.Audit.Keep); keep > 0 && time.Since(pruned) > time.Hour {
			pruned = time.Now()
			p, err := s.audit.Prune(ctx, pruned.Add(-keep), s.cfg.Audit.Archive, false)
			if err != nil && ctx.Err() == nil {
				s.log.ErrorContext(ctx, "the audit log cannot be pruned", "error", err)
			} else if p.Entries > 0 {
				s.log.InfoContext(ctx, "audit log pruned", "entries", p.Entries, "bytes", p.Bytes, "first_kept", p.First)
			}
		}
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Server) verificationKeys() (map[string]policy.VerificationKey, error) {
	keys := map[string]policy.VerificationKey{}
	for id, file := range s.cfg.Policy.VerificationKeys {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("policy.verification_keys.%s: %w", id, err)
		}
		keys[id] = policy.VerificationKey{PEM: string(b), Algorithm: "ES256"}
	}
	return keys, nil
}

// policyConfig is data.claviger.config.
func (s *Server) policyConfig() map[string]any {
	extra := maps.Clone(s.cfg.Policy.Config)
	if len(s.opt.TestRoots) > 0 {
		if extra == nil {
			extra = map[string]any{}
		}
		extra["allow_simulated"] = true
	}
	return extra
}

func (s *Server) openPolicy(context.Context, context.Context) error {
	keys, err := s.verificationKeys()
	if err != nil {
		return err
	}
	s.engine, err = policy.New(policy.Config{
		Dir: s.cfg.Policy.Dir, Keep: filepath.Join(s.cfg.DataDir, "policy-bundles"), Logger: s.log, EvalSteps: s.cfg.Policy.EvalSteps, EvalTimeout: time.Duration(s.cfg.Policy.EvalTimeout), VerificationKeys: keys, ExtraData: s.policyConfig(),
		OnChange: func(st policy.Status) {
			s.broker.Changed()
		},
	})
	if err != nil {
		return fmt.Errorf("policy.dir: %w", err)
	}
	return nil
}

func (s *Server) openBroker(ctx, run context.Context) error {
	nonceKey, err := s.state.SealedKey(ctx, "nonce", state.GenerateKey32)
	if err != nil {
		return fmt.Errorf("nonce key: %w", err)
	}
	nonces, err := broker.NewNonces(nonceKey, s.id.ID(), time.Duration(s.cfg.Nonce))
	if err != nil {
		return fmt.Errorf("nonce_lifetime: %w", err)
	}
	verifiers, err := s.verifiers(ctx, s.ticketKey)
	if err != nil {
		return err
	}
	// No file names a root of collateral: this checker stays when others are read again.
	if s.collateral, err = s.openCollateral(verifiers); err != nil {
		return err
	}
	sources := map[string]broker.Source{"local": s.secrets}
	for i, v := range s.cfg.Vault {
		src, err := vault.New(ctx, v.source(s.log))
		if err != nil {
			return fmt.Errorf("vault[%d]: %w", i, err)
		}
		s.spawn("vault "+v.Name, func() error { return src.Run(run) })
		s.vaults = append(s.vaults, src)
		sources[v.Name] = src
	}
	if t := s.cfg.Tokens; t.Issuer != "" {
		s.tokens, err = token.New(ctx, token.Config{
			Issuer: t.Issuer, Key: s.state.SealedKey, Algorithm: t.Algorithm, MaxTTL: time.Duration(t.MaxTTL), Logger: s.log,
		})
		if err != nil {
			return fmt.Errorf("tokens: %w", err)
		}
		sources["token"] = s.tokens
	}
	s.sources = sources
	instance := rand.Text()[:12]
	s.feed = feed.New(feed.Config{KV: s.kv, Sources: sources, Instance: instance, Interval: time.Duration(s.cfg.Sessions.Poll), Logger: s.log})
	s.broker, err = broker.New(broker.Config{
		Identity: s.id, Nonces: nonces, Verifiers: verifiers.Verifiers, Activator: verifiers.TPM, Collateral: s.collateral, Policy: s.engine, Revocations: s.state, Identities: s.state, Store: s.state,
		Sources: sources, Log: s.audit, AllowSimulated: len(s.opt.TestRoots) > 0, TTL: time.Duration(s.cfg.SecretTTL),
		Leases: s.state, Sessions: s.state, Versions: s.feed, Cache: s.state, Keys: s.state, Instance: instance, SessionTTL: time.Duration(s.cfg.Sessions.TTL),
		OwnerTTL: time.Duration(s.cfg.Sessions.OwnerTTL), ResumeTime: time.Duration(s.cfg.Sessions.Resume),
		MaxSessions: s.cfg.Sessions.Max, Logger: s.log, Observe: s.observe(),
	})
	if err != nil {
		return err
	}
	for _, v := range s.cfg.Vault {
		if v.AuditSocket != "" {
			s.followAudit(run, v)
		}
	}
	if every := time.Duration(s.cfg.Etcd.compact()); len(s.cfg.Etcd.Endpoints) > 0 && every > 0 {
		s.spawn("etcd compaction", func() error { return s.kv.Compact(run, instance, every, s.log) })
	}
	s.spawn("files", func() error { return s.followFiles(run) })
	s.spawn("version feed", func() error { return s.feed.Run(run) })
	s.spawn("leases", func() error { return s.broker.KeepLeases(run) })
	s.spawn("sweep", func() error { return s.state.Sweep(run) })
	return nil
}

// ticketKey makes the tickets of activated attestation keys good on every broker.
func (s *Server) ticketKey(ctx context.Context) ([]byte, error) {
	return s.state.SealedKey(ctx, "tpm-ticket", state.GenerateKey32)
}

func (s *Server) verifiers(ctx context.Context, ticketKey func(context.Context) ([]byte, error)) (tee.Set, error) {
	t := s.cfg.Evidence.TPM
	var gceRoots []*x509.Certificate
	cfg := tpm.Config{TicketLife: time.Duration(t.ActivationLife)}
	for _, f := range []struct {
		field, file string
		into        *[]*x509.Certificate
	}{
		{"tpm.ek_roots", t.EKRoots, &cfg.EKRoots}, {"tpm.ek_intermediates", t.EKIntermediates, &cfg.EKIntermediates}, {"tpm.ak_roots", t.AKRoots, &cfg.AKRoots},
		{"gce.ak_roots", s.cfg.Evidence.GCE.AKRoots, &gceRoots},
	} {
		if f.file == "" {
			continue
		}
		var err error
		if *f.into, err = certificates(f.file); err != nil {
			return tee.Set{}, fmt.Errorf("evidence.%s: %w", f.field, err)
		}
	}
	var err error
	if cfg.TicketKey, err = ticketKey(ctx); err != nil {
		return tee.Set{}, fmt.Errorf("ticket key: %w", err)
	}
	devices, monitors, err := s.cfg.Evidence.Keystone.endorsed()
	if err != nil {
		return tee.Set{}, err
	}
	var rims map[string][]byte
	if folder := s.cfg.Evidence.NVIDIAGPU.RIMs; folder != "" {
		if rims, err = nvidia.ReadRIMs(folder); err != nil {
			return tee.Set{}, fmt.Errorf("evidence.nvidia_gpu.rims: %w", err)
		}
	}
	var issuers []results.Issuer
	for i, r := range s.cfg.Evidence.Results {
		in, err := r.issuer()
		if err != nil {
			return tee.Set{}, fmt.Errorf("evidence.results[%d].%w", i, err)
		}
		issuers = append(issuers, in)
	}
	psaKeys, err := s.cfg.Evidence.PSA.endorsed()
	if err != nil {
		return tee.Set{}, fmt.Errorf("evidence.psa.endorsements: %w", err)
	}
	ccaKeys, err := s.cfg.Evidence.CCA.endorsed()
	if err != nil {
		return tee.Set{}, fmt.Errorf("evidence.cca.endorsements: %w", err)
	}
	return tee.New(tee.Config{
		SNP: snp.Config{TestRoots: s.opt.TestRoots}, TPM: cfg, GCEAKRoots: gceRoots, Nitro: nitro.Config{MaxAge: time.Duration(s.cfg.Evidence.Nitro.MaxAge)},
		Keystone: keystone.Config{DeviceKeys: devices, Monitors: monitors}, Results: results.Config{Issuers: issuers},
		PSA: psa.Config{Endorsements: psaKeys}, CCA: cca.Config{Endorsements: ccaKeys},
		NVIDIA: nvidia.Config{RIMs: rims, OCSPOptional: s.cfg.Evidence.NVIDIAGPU.OCSP == "optional"},
	})
}

// certificates reads a PEM file of one or more certificates.
func certificates(file string) ([]*x509.Certificate, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	certs, err := pemfile.Certificates(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return certs, nil
}

// keepHinting runs feed until the end. Hints only make rotations known sooner: a broker goes on without them.
func keepHinting(run context.Context, log *slog.Logger, again time.Duration, feed func(context.Context) error) error {
	for {
		err := feed(run)
		if run.Err() != nil {
			return run.Err()
		}
		log.Warn("no hints of rotations from Vault's audit device; polling finds them", "error", err)
		select {
		case <-run.Done():
			return run.Err()
		case <-time.After(again):
		}
	}
}

// followAudit takes hints of rotations from Vault's audit device. What comes too fast is dropped: polling finds it.
func (s *Server) followAudit(run context.Context, v Vault) {
	type place struct{ mount, path string }
	hints := make(chan place, 256)
	f := vault.Feed{Socket: v.AuditSocket, Logger: s.log, Notify: func(mount, path string) {
		select {
		case hints <- place{mount, path}:
		default:
		}
	}}
	s.spawn("audit feed of vault "+v.Name, func() error {
		return keepHinting(run, s.log.With("vault", v.Name, "socket", v.AuditSocket), time.Minute, f.Run)
	})
	s.spawn("hints of vault "+v.Name, func() error {
		for {
			select {
			case p := <-hints:
				s.feed.Hint(run, v.Name, p.mount, p.path)
			case <-run.Done():
				return run.Err()
			}
		}
	})
}

func (e Evidence) readBundle() (*collateral.Bundle, error) {
	key, err := ed25519PublicKey(e.BundleKey)
	if err != nil {
		return nil, fmt.Errorf("evidence.bundle_key: %w", err)
	}
	b, err := collateral.ReadBundle(e.Bundle, key)
	if err != nil {
		return nil, fmt.Errorf("evidence.bundle: %w", err)
	}
	return b, nil
}

func (s *Server) openCollateral(checker collateral.Checker) (*collateral.Source, error) {
	e := s.cfg.Evidence
	c := collateral.Config{
		Checker: checker,
		Folder:  e.Folder, CacheDir: filepath.Join(s.cfg.DataDir, "collateral"), Logger: s.log,
		Services: collateral.Services{KDS: e.KDS, PCS: e.PCS, IntelRootCRL: e.RootCRL},
		Ages:     map[attest.CollateralKind]collateral.Age{},
	}
	for k, a := range e.Ages {
		c.Ages[k] = collateral.Age{Refresh: time.Duration(a.Refresh), Max: time.Duration(a.Max)}
	}
	if e.Bundle != "" {
		var err error
		if c.Bundle, err = e.readBundle(); err != nil {
			return nil, err
		}
	}
	src, err := collateral.New(c)
	if err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	return src, nil
}

// follow applies the shared state to policy and catalog, now and as it changes.
func (s *Server) follow(ctx, run context.Context) error {
	static, err := s.cfg.catalog()
	if err != nil {
		return err
	}
	s.state.OnCatalog = func(shared []broker.CatalogEntry, unusable map[string]error) map[string]error {
		c, refused, err := broker.PlanCatalog(static, shared, unusable)
		if err != nil { // the file's own entries, which were good at the start
			c, refused = new(broker.Catalog), map[string]error{"": err}
		}
		s.broker.SetCatalog(c)
		return refused
	}
	s.state.CheckCatalog = func(put broker.CatalogEntry, before, after []broker.CatalogEntry) error {
		if err := s.checkEntry(put); err != nil {
			return err
		}
		return checkCatalog(static, put, before, after)
	}
	s.state.OnReferences = s.engine.SetReferences
	s.state.OnPolicyPin = func(digest string) {
		if err := s.engine.Pin(digest); err != nil {
			s.log.Error("cannot put the pinned policy in force", "digest", digest, "error", err)
		}
	}
	s.state.OnChange = s.broker.Changed
	s.spawn("policy", func() error { return s.engine.Run(run) })
	ready := make(chan struct{})
	s.spawn("shared state", func() error { return s.state.Run(run, ready) })
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("read shared state: %w", ctx.Err())
	case <-time.After(15 * time.Second):
		return errors.New("read shared state: no answer within 15 seconds")
	}
}

// checkEntry says why an entry could release nothing here.
func (s *Server) checkEntry(e broker.CatalogEntry) error {
	src, ok := s.sources[e.Source]
	if !ok {
		return fmt.Errorf("source: %q is not configured, want one of %s", e.Source, strings.Join(slices.Sorted(maps.Keys(s.sources)), ", "))
	}
	if _, leases := src.(broker.LeasedSource); e.Kind.Leased() && !leases {
		return fmt.Errorf("kind: source %q cannot lease %s", e.Source, e.Kind)
	}
	if e.Source == "token" {
		if err := token.Check(e); err != nil {
			return err
		}
	}
	if err := releasable(s.engine, e); err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	return nil
}

// releasable says why the policy in force could never release by the entry.
func releasable(engine *policy.Engine, e broker.CatalogEntry) error {
	if err := inForce(engine.Status(), e.Policy); err != nil {
		return err
	}
	return engine.Fits(e)
}

// inForce says why a policy could not be asked.
func inForce(st policy.Status, name string) error {
	if st.Blocked != "" {
		return fmt.Errorf("none is in force: %s", st.Blocked)
	}
	if slices.Contains(st.Packages, "claviger.release."+name) {
		return nil
	}
	var names []string
	for _, p := range st.Packages {
		names = append(names, strings.TrimPrefix(p, "claviger.release."))
	}
	return fmt.Errorf("%q is not in the bundle in force, which has %s", name, strings.Join(names, ", "))
}

// checkCatalog says why an entry cannot be put into the shared catalog, which is
// after with it and before without: the file defines it, or entries would not go
// together that did. (Those that did not before are no obstacle to mending them.)
func checkCatalog(file []broker.CatalogEntry, put broker.CatalogEntry, before, after []broker.CatalogEntry) error {
	if slices.ContainsFunc(file, func(o broker.CatalogEntry) bool { return o.Pattern == put.Pattern }) {
		return fmt.Errorf("pattern: %q is defined by the configuration file, which wins: change it there", put.Pattern)
	}
	_, was, err := broker.PlanCatalog(file, before, nil)
	if err != nil {
		return err
	}
	_, is, err := broker.PlanCatalog(file, after, nil)
	if err != nil {
		return err
	}
	for pattern, err := range is {
		if _, ok := was[pattern]; !ok {
			return err
		}
	}
	return nil
}

func (s *Server) observe() func(context.Context, broker.Event) {
	sample := newSampler(5, time.Second)
	return func(ctx context.Context, e broker.Event) {
		if s.metrics != nil {
			s.metrics.Observe(ctx, e)
		}
		attrs := []any{"stage", e.Stage, "outcome", e.Outcome, "type", e.Type, "ms", float64(e.Duration.Microseconds()) / 1000}
		if e.RecordID != "" {
			attrs = append(attrs, "record", e.RecordID)
		}
		if e.Err == nil {
			s.log.InfoContext(ctx, "released", attrs...)
			return
		}
		if e.Reason != "" {
			attrs = append(attrs, "reason", e.Reason)
		}
		attrs = append(attrs, "error", broker.Clip(e.Err.Error(), broker.MaxError))
		// What fails before evidence verified is in no record: sampled, so that a flood cannot fill the log.
		if e.RecordID == "" && !sample.allow() {
			return
		}
		level := slog.LevelInfo
		if e.Outcome == broker.Failed {
			level = slog.LevelError
		}
		s.log.Log(ctx, level, "not released", attrs...)
	}
}

func (s *Server) serveWorkloads(_, run context.Context) error {
	creds, err := serverTLS(s.log, s.cfg.TLS, "")
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	opts, err := rpc.ServerOptions(s.log, s.admission.Intercept)
	if err != nil {
		return err
	}
	opts = append(s.gate.Options(), append(opts, grpc.ChainStreamInterceptor(s.admission.InterceptStream))...)
	s.workloads = grpc.NewServer(append(opts, grpc.Creds(credentials.NewTLS(creds)), grpc.StatsHandler(otelgrpc.NewServerHandler()))...)
	pb.RegisterKeyBrokerServer(s.workloads, &rpc.Workload{Broker: s.broker, BrokerID: s.id.ID(), Version: s.opt.Version, Prove: s.prove, Log: s.log})
	s.health = health.NewServer()
	s.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	healthpb.RegisterHealthServer(s.workloads, s.health)
	reflection.Register(s.workloads)
	s.addr, err = s.serve("workloads", s.cfg.Listen, s.workloads, s.gate)
	s.spawn("surroundings", func() error { return s.look(run) })
	s.spawn("health", func() error { return s.watchHealth(run) })
	return err
}

// problems are what keeps this broker from releasing all that it should, those that stop everything first.
func (s *Server) problems() []state.Problem {
	ps := s.state.Problems()
	if err := s.kv.Health(); err != nil {
		ps = append([]state.Problem{{Kind: state.KindStore, Reason: err.Error(), Stops: "all", StopsAll: true}}, ps...)
	}
	if st := s.engine.Status(); st.Blocked != "" {
		ps = append(ps, state.Problem{Kind: "policy", Name: st.Pin, Reason: st.Blocked, Stops: "all", StopsAll: true})
	} else if st.Error != "" {
		ps = append(ps, state.Problem{Kind: "policy", Name: s.cfg.Policy.Dir, Reason: "refused: " + st.Error, Stops: "nothing: the bundle before is in force"})
	}
	for _, f := range s.files {
		if err := f.err.Load(); err != nil {
			ps = append(ps, state.Problem{Kind: "file", Name: f.name, Reason: (*err).Error(), Stops: "nothing: what was in force before still is"})
		}
	}
	return append(ps, s.outsideProblems()...)
}

// ready says why nothing is released, nil if something may be.
func (s *Server) ready() error {
	for _, p := range s.problems() {
		if p.StopsAll {
			return fmt.Errorf("nothing is released: %s %s: %s", p.Kind, p.Name, p.Reason)
		}
	}
	return nil
}

// watchHealth stops saying "serving" while a release would fail anyway.
func (s *Server) watchHealth(ctx context.Context) error {
	t := time.NewTicker(250 * time.Millisecond)
	defer t.Stop()
	serving := true
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		err := s.ready()
		if ok := err == nil; ok != serving {
			serving = ok
			st := healthpb.HealthCheckResponse_NOT_SERVING
			if ok {
				st = healthpb.HealthCheckResponse_SERVING
			}
			s.health.SetServingStatus("", st)
			s.log.Warn("health changed", "serving", ok, "error", err)
		}
	}
}

func (s *Server) serveAdmin(context.Context, context.Context) error {
	if s.cfg.Admin.Listen == "off" {
		return nil
	}
	creds, err := serverTLS(s.log, s.cfg.Admin.TLS, s.cfg.Admin.ClientCA)
	if err != nil {
		return fmt.Errorf("admin: tls: %w", err)
	}
	opts, err := rpc.ServerOptions(s.log, rpc.Operators(s.cfg.Admin.Operators).Authorise(s.log, &s.turnedAway))
	if err != nil {
		return err
	}
	// Operators' connections are not counted with the guests'; who has no certificate is bounded in the same way.
	gate := rpc.NewGate(s.cfg.limits())
	s.admin = grpc.NewServer(append(append(gate.Options(), opts...), grpc.Creds(credentials.NewTLS(creds)))...)
	admin := &rpc.Admin{
		State: s.state, Secrets: s.secrets, ForgetKeyFn: s.broker.ForgetKey, Sessions: sessions{s}, ListSecret: s.listSecrets, Catalog: func() []broker.CatalogEntry { return s.broker.Catalog().Entries() },
		Policy: s.policyStatus, Pinnable: s.engine.Pinnable, GetStatusFn: s.status, Decisions: s.decisions,
		Conflict: func(err error) bool { return errors.Is(err, state.ErrConflict) }, Now: time.Now, Log: s.log,
	}
	if s.tokens != nil {
		admin.RotateKey = s.rotateTokenKey
	}
	pb.RegisterAdminServer(s.admin, admin)
	s.adminAddr, err = s.serve("admin", s.cfg.Admin.Listen, s.admin, gate)
	return err
}

func (s *Server) serve(name, addr string, g *grpc.Server, gate *rpc.Gate) (net.Addr, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for %s: %w", name, err)
	}
	s.spawn(name, func() error { return g.Serve(gate.Listener(l)) })
	return l.Addr(), nil
}

func (s *Server) serveMetrics(context.Context, context.Context) error {
	limits := s.cfg.limits()
	if limits.QueueTime > rpc.GuestPatience {
		s.log.Warn("limits.queue_time is longer than guests wait for an answer: they hang up, and lose their place", "queue_time", limits.QueueTime, "guests", rpc.GuestPatience)
	}
	s.admission = rpc.NewAdmission(limits, func(resource string) bool {
		e, _, ok := s.broker.Catalog().Lookup(resource)
		return ok && e.Priority == broker.PriorityBoot
	})
	s.gate = rpc.NewGate(limits)
	s.metrics = telemetry.NewMetrics()
	s.gateMetrics()
	s.metrics.Gauge("claviger_queue_releases", "Releases running or waiting.", nil, func() float64 { return float64(s.admission.Waiting()) })
	s.metrics.Gauge("claviger_collateral_waiting", "Releases that wait for a vendor's service, outside the queue.", nil, func() float64 { return float64(s.admission.Away()) })
	s.metrics.Counter("claviger_collateral_forged_total", "Pieces of collateral, from services or in files, that their authority did not sign.", nil, func() float64 { return float64(s.collateral.Forged()) })
	s.metrics.Counter("claviger_collateral_worse_total", "Answers of vendors' services that were older than what was there, or out of date.", nil, func() float64 { return float64(s.collateral.Worse()) })
	for _, class := range rpc.Classes() {
		s.metrics.Gauge("claviger_queue_waiting", "Releases waiting, by class.", map[string]string{"class": class}, func() float64 { return float64(s.admission.Queued(class)) })
	}
	s.metrics.Counter("claviger_queue_displaced_total", "Releases that lost their place in a full queue to a disk key.", nil, func() float64 { return float64(s.admission.Displaced()) })
	s.admission.Waited = s.metrics.Waited
	s.metrics.Gauge("claviger_sessions", "Workloads that watch for new versions on this broker.", nil, func() float64 { return float64(s.broker.Watching()) })
	for i, v := range s.cfg.Vault {
		stats, source := s.vaults[i].Stats, map[string]string{"source": v.Name}
		s.metrics.Counter("claviger_source_requests_total", "Requests to a Vault.", source, func() float64 { return float64(stats().Requests) })
		s.metrics.Gauge("claviger_source_waiting", "Requests to a Vault that wait for their turn.", source, func() float64 { return float64(stats().Waiting) })
		s.metrics.Gauge("claviger_source_open", "1 while a Vault, or something behind it, does not answer and is left alone (circuit breaker).", source, func() float64 {
			if stats().Open {
				return 1
			}
			return 0
		})
		s.metrics.Gauge("claviger_source_left_over", "What this broker made in a Vault and could not end yet; it tries again.", source, func() float64 { return float64(stats().Left) })
	}
	s.metrics.Gauge("claviger_problems", "Parts of the shared state that are not in force: `claviger status` names them.", map[string]string{"stops": "some"}, func() float64 { return s.countProblems(false) })
	s.metrics.Gauge("claviger_problems", "Parts of the shared state that are not in force: `claviger status` names them.", map[string]string{"stops": "all"}, func() float64 { return s.countProblems(true) })
	s.metrics.Gauge("claviger_keys_missing", "Keys that vanished from their sources, and are not made anew: `claviger status` names them.", nil, func() float64 { return float64(len(s.missingKeys())) })
	s.metrics.Gauge("claviger_store_bytes", "Size of the store of the shared state.", nil, func() float64 { return float64(s.kv.Size().Bytes) })
	s.metrics.Gauge("claviger_store_quota_bytes", "How large it may be; 0: it does not tell.", nil, func() float64 { return float64(s.kv.Size().Quota) })
	const turned, turnedHelp = "claviger_operator_calls_refused_total", "Operators' calls that were turned away: the certificate names no operator, or the role does not allow it."
	s.metrics.Counter(turned, turnedHelp, map[string]string{"why": "unknown"}, func() float64 { return float64(s.turnedAway.Unknown.Load()) })
	s.metrics.Counter(turned, turnedHelp, map[string]string{"why": "role"}, func() float64 { return float64(s.turnedAway.Role.Load()) })
	s.metrics.Counter("claviger_policy_decisions_total", "Decisions that a policy was asked for.", nil, func() float64 { return float64(s.engine.Decisions()) })
	s.metrics.Gauge("claviger_policy_refused", "1 if the newest policy bundle was refused and an older one is in force.", nil, func() float64 {
		if s.engine.Status().Error != "" {
			return 1
		}
		return 0
	})
	s.metrics.Gauge("claviger_policy_blocked", "1 if no policy is in force and nothing is released: the pinned bundle is not here.", nil, func() float64 {
		if s.engine.Status().Blocked != "" {
			return 1
		}
		return 0
	})
	if s.cfg.Metrics == "off" {
		return nil
	}
	l, err := net.Listen("tcp", s.cfg.Metrics)
	if err != nil {
		return fmt.Errorf("metrics_listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.metrics.Handler())
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	s.metricsServer = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}
	s.metricsAddr = l.Addr()
	gate := rpc.NewGate(limits)
	s.spawn("metrics", func() error {
		if err := s.metricsServer.Serve(gate.Listener(l)); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	return nil
}

// gateMetrics show what those cost who have not asked for anything yet.
func (s *Server) gateMetrics() {
	const refused, refusedHelp = "claviger_refused_total", "Of connections and requests: refused because of a limit, or ended because nothing came."
	for why, n := range map[string]func(rpc.GateStats) int{
		"connections": func(g rpc.GateStats) int { return g.RefusedConnections },
		"streams":     func(g rpc.GateStats) int { return g.RefusedStreams },
		"silent":      func(g rpc.GateStats) int { return g.Silent },
	} {
		s.metrics.Counter(refused, refusedHelp, map[string]string{"why": why}, func() float64 { return float64(n(s.gate.Stats())) })
	}
	s.metrics.Gauge("claviger_connections", "Workloads' connections.", nil, func() float64 { return float64(s.gate.Stats().Connections) })
	s.metrics.Gauge("claviger_requests_arriving", "Requests of which not all has come.", nil, func() float64 { return float64(s.gate.Stats().Streams) })
}

func (s *Server) countProblems(stopsAll bool) float64 {
	n := 0
	for _, p := range s.problems() {
		if p.StopsAll == stopsAll {
			n++
		}
	}
	return float64(n)
}

// serveTokens serves what relying parties verify tokens with.
func (s *Server) serveTokens(_, run context.Context) error {
	if s.tokens == nil {
		return nil
	}
	s.spawn("token keys", func() error { return s.rotateTokenKeys(run) })
	if s.cfg.Tokens.Listen == "off" {
		return nil
	}
	creds, err := serverTLS(s.log, s.cfg.TLS, "")
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	l, err := net.Listen("tcp", s.cfg.Tokens.Listen)
	if err != nil {
		return fmt.Errorf("tokens.listen: %w", err)
	}
	s.tokensAddr = l.Addr()
	gate := rpc.NewGate(s.cfg.limits())
	s.tokensServer = &http.Server{
		Handler: s.tokens, TLSConfig: creds, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	s.spawn("tokens", func() error {
		if err := s.tokensServer.ServeTLS(gate.Listener(l), "", ""); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	return nil
}

// rotateTokenKeys makes a new signing key now and then. Brokers that do so at once make one.
func (s *Server) rotateTokenKeys(ctx context.Context) error {
	t := time.NewTicker(time.Duration(s.cfg.Tokens.RotateEvery))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		kid, err := s.tokens.Rotate(ctx)
		s.log.Info("token key rotated", "kid", kid, "error", err)
	}
}

func (s *Server) rotateTokenKey(ctx context.Context, replace bool) (string, error) {
	if replace {
		return s.tokens.Replace(ctx)
	}
	return s.tokens.Rotate(ctx)
}

func (s *Server) prove(ctx context.Context, index uint64) (rpc.Proof, bool, error) {
	p, err := s.audit.Prove(ctx, index)
	if errors.Is(err, audit.ErrNotYet) {
		return rpc.Proof{}, false, nil
	}
	return rpc.Proof{Checkpoint: p.Checkpoint, Path: p.Path, LeafHash: p.LeafHash}, true, err
}

func (s *Server) listSecrets(ctx context.Context, prefix string) ([]*pb.SecretInfo, error) {
	infos, err := s.secrets.List(ctx, prefix)
	var out []*pb.SecretInfo
	for _, i := range infos {
		out = append(out, &pb.SecretInfo{Key: i.Key, Version: i.Version, UpdatedAt: timestamppb.New(i.Updated)})
	}
	return out, err
}

func (s *Server) policyStatus() *pb.GetPolicyResponse {
	st := s.engine.Status()
	r := &pb.GetPolicyResponse{Digest: st.Digest, Revision: st.Revision, Packages: st.Packages, LoadedAt: timestamppb.New(st.LoadedAt), Error: st.Error}
	r.Pinned = st.Pin
	if st.Blocked != "" {
		r.Error = st.Blocked
	}
	for name, others := range st.ReferencesOf {
		if r.ReferencesOf == nil {
			r.ReferencesOf = map[string]*pb.ReferenceOwner{}
		}
		r.ReferencesOf[name] = &pb.ReferenceOwner{Policies: others}
	}
	for _, c := range st.Candidates {
		r.Candidates = append(r.Candidates, c.Digest)
	}
	return r
}

func (s *Server) status(ctx context.Context) (*pb.GetStatusResponse, error) {
	id := s.id.ID()
	size, err := s.audit.Size(ctx)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // a log without entries has no checkpoint yet
		return nil, err
	}
	var problems []*pb.Problem
	for _, p := range s.problems() {
		problems = append(problems, &pb.Problem{Kind: p.Kind, Name: p.Name, Reason: p.Reason, Stops: p.Stops, StopsAll: p.StopsAll})
	}
	z := s.kv.Size()
	return &pb.GetStatusResponse{
		Problems: problems, Store: &pb.StoreSize{Bytes: z.Bytes, BytesInUse: z.InUse, Quota: z.Quota},
		BrokerId: id[:], Version: s.opt.Version, Simulated: s.broker.AcceptsSimulated(), PolicyDigest: s.engine.Status().Digest,
		LogOrigin: s.audit.Origin(), LogVerifierKey: s.audit.VerifierKey(), LogSize: size, StartedAt: timestamppb.New(s.started), Identity: s.id.PublicKey(),
	}, nil
}

// decisions reads the log, newest first. Of the newest, it waits a moment for
// those that are not in a checkpoint yet: who was just denied asks why.
func (s *Server) decisions(ctx context.Context, before uint64, limit int) ([]*pb.Decision, error) {
	if before == 0 {
		moment, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := s.audit.Settle(moment)
		cancel()
		if err != nil { // what is there is better than nothing
			s.log.WarnContext(ctx, "the newest decisions are not listed", "error", err)
		}
	}
	size, err := s.audit.Size(ctx)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if before == 0 || before > size {
		before = size
	}
	first := before - min(before, uint64(limit))
	kept, err := s.audit.First(ctx)
	if err != nil {
		return nil, err
	}
	first = max(first, kept)
	var out []*pb.Decision
	for e, err := range s.audit.Entries(ctx, first) {
		if err != nil {
			return nil, err
		}
		if e.Index >= before {
			break
		}
		out = append(out, &pb.Decision{LogIndex: e.Index, Entry: string(e.Data)})
	}
	slices.Reverse(out)
	return out, nil
}

// Addresses tell where the listeners are, for ":0" in tests.
func (s *Server) Addresses() (workloads, admin, metrics string) {
	str := func(a net.Addr) string {
		if a == nil {
			return ""
		}
		return a.String()
	}
	return str(s.addr), str(s.adminAddr), str(s.metricsAddr)
}

// TokensAddress is where discovery and keys of tokens are served, "" if they are not.
func (s *Server) TokensAddress() string {
	if s.tokensAddr == nil {
		return ""
	}
	return s.tokensAddr.String()
}

// Identity is the broker's public key, to be pinned by guests (SubjectPublicKeyInfo, DER).
func (s *Server) Identity() []byte { return s.id.PublicKey() }

// LogVerifierKey verifies the audit log.
func (s *Server) LogVerifierKey() string { return s.audit.VerifierKey() }

// Drain ends all watching sessions; their guests come back, to this or another broker.
func (s *Server) Drain() { s.broker.Drain() }

// Reload looks at the policy folder now, and not only when its files change. Everything else that can change while
// the broker runs (certificates, keys and CAs in files) is looked at when it is used.
func (s *Server) Reload(ctx context.Context) {
	err := s.engine.Reload(ctx)
	s.log.InfoContext(ctx, "policies read again", "digest", s.engine.Status().Digest, "error", err)
}

// Wait returns when ctx ends or a part of the server fails.
func (s *Server) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.failed:
		return err
	}
}

// Close drains: health says no, running requests end, then the parts stop in reverse order.
func (s *Server) Close(ctx context.Context) error {
	if s.health != nil {
		s.health.Shutdown()
	}
	if s.broker != nil {
		s.broker.Stop()
	}
	for _, g := range []*grpc.Server{s.workloads, s.admin} {
		if g == nil {
			continue
		}
		done := make(chan struct{})
		go func() { g.GracefulStop(); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			g.Stop()
		}
	}
	for _, h := range []*http.Server{s.metricsServer, s.tokensServer} {
		if h != nil {
			_ = h.Shutdown(ctx)
		}
	}
	s.cancel()
	s.wg.Wait()
	var errs []error
	for _, f := range slices.Backward(s.close) {
		errs = append(errs, f(ctx))
	}
	return errors.Join(errs...)
}

func (s *Server) onClose(f func(context.Context) error) { s.close = append(s.close, f) }

// spawn runs a part in the background; an end that nobody asked for ends the server.
func (s *Server) spawn(name string, f func() error) {
	s.wg.Go(func() {
		if err := f(); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, grpc.ErrServerStopped) {
			select {
			case s.failed <- fmt.Errorf("%s: %w", name, err):
			default:
			}
		}
	})
}

func ed25519PublicKey(file string) (ed25519.PublicKey, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pub, err := pemfile.Ed25519(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return pub, nil
}
