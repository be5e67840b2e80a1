// Package server puts a broker together from a configuration and runs it. It
// holds wiring, not logic: what is decided, is decided in the packages below.
package server

import (
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/arm"
	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/collateral"
	"github.com/claviger/claviger/broker/etcd"
	"github.com/claviger/claviger/broker/rpc"
	"github.com/claviger/claviger/broker/tee/results"
	"github.com/claviger/claviger/broker/token"
	"github.com/claviger/claviger/broker/vault"
	"github.com/claviger/claviger/internal/strictyaml"
)

// Config is the configuration file of `claviger serve` (docs/configuration.md), YAML or JSON.
type Config struct {
	Listen    string    `json:"listen"` // gRPC for workloads; default 0.0.0.0:7443
	TLS       TLSFiles  `json:"tls"`
	Admin     Admin     `json:"admin"`
	Metrics   string    `json:"metrics_listen"` // plain HTTP; default 127.0.0.1:7445, "off" to switch it off
	DataDir   string    `json:"data_dir"`       // default /var/lib/claviger
	SealKey   string    `json:"seal_key_file"`  // 32 bytes or 64 hex digits; default data_dir/seal.key, made if the state is embedded
	Etcd      Etcd      `json:"etcd"`
	Policy    Policy    `json:"policy"`
	Catalog   []Entry   `json:"catalog"`
	Vault     []Vault   `json:"vault"`
	Evidence  Evidence  `json:"evidence"`
	Audit     Audit     `json:"audit"`
	Limits    Limits    `json:"limits"`
	Sessions  Sessions  `json:"sessions"`
	Tokens    Tokens    `json:"tokens"`
	Nonce     Duration  `json:"nonce_lifetime"` // default 2m
	SecretTTL Duration  `json:"secret_ttl"`     // default 5m
	Log       LogConfig `json:"log"`
	Tracing   Tracing   `json:"tracing"`
	// TestRoot exists to be refused with a clear message.
	TestRoot string `json:"test_root"`

	// Origin is the file that Load read, for errors; nil otherwise.
	Origin *Origin `json:"-"`
}

// Origin is a configuration file.
type Origin struct {
	Path string
	Text []byte
}

// at adds the file, and the line of the field that an error begins with.
func (o *Origin) at(err error) error {
	if o == nil {
		return err
	}
	field := fieldOfError.FindString(err.Error())
	if line := strictyaml.Line(o.Text, field); line > 0 {
		return fmt.Errorf("%s:%d: %w", o.Path, line, err)
	}
	return fmt.Errorf("%s: %w", o.Path, err)
}

var fieldOfError = regexp.MustCompile(`^[a-z_]+(\.[a-zA-Z0-9_-]+|\[[0-9]+\])*`)

// TLSFiles names PEM files. They are read again when they change.
type TLSFiles struct {
	Cert string `json:"cert"`
	Key  string `json:"key"`
}

// Admin is the operators' listener; mTLS.
type Admin struct {
	Listen    string              `json:"listen"` // default 127.0.0.1:7444, "off" to switch it off
	TLS       TLSFiles            `json:"tls"`    // default: as for workloads
	ClientCA  string              `json:"client_ca"`
	Operators map[string]rpc.Role `json:"operators"` // by common name of the client certificate
}

// Etcd is an external cluster; without endpoints an embedded member in data_dir.
type Etcd struct {
	Endpoints    []string `json:"endpoints"`
	CA           string   `json:"ca"`
	Cert         string   `json:"cert"`
	Key          string   `json:"key"`
	Username     string   `json:"username"`
	PasswordFile string   `json:"password_file"`
	// QuotaMiB is how large the embedded member's store may be; 0: 2048.
	QuotaMiB int64 `json:"quota_mib"`
	// Compact is how often one of the brokers has an external cluster forget old revisions; default 5m, "0s": never.
	Compact *Duration `json:"compact"`
}

func (e Etcd) compact() Duration {
	if e.Compact == nil {
		return Duration(5 * time.Minute)
	}
	return *e.Compact
}

// Policy names the folder of bundles.
type Policy struct {
	Dir              string            `json:"dir"`
	EvalSteps        int               `json:"eval_steps"`        // of one decision; default 500000
	EvalTimeout      Duration          `json:"eval_timeout"`      // of one decision, where a single step takes long; default 5s
	VerificationKeys map[string]string `json:"verification_keys"` // key id: PEM file; if any, only signed bundles load
	Config           map[string]any    `json:"config"`            // data.claviger.config
}

// Entry is a catalog entry of the configuration file.
type Entry struct {
	Pattern     string            `json:"pattern"`
	Source      string            `json:"source"`
	Kind        string            `json:"kind"`
	Mount       string            `json:"mount"`
	Key         string            `json:"key"`
	PinVersion  int               `json:"pin_version"`
	Options     map[string]string `json:"options"`
	Grace       Duration          `json:"grace"`
	Rotatable   bool              `json:"rotatable"`
	Rekey       bool              `json:"rekey"`
	Priority    string            `json:"priority"`
	Field       string            `json:"field"`
	Policy      string            `json:"policy"`
	CreateBytes int               `json:"create_bytes"`
	TTL         Duration          `json:"ttl"`
	Labels      map[string]string `json:"labels"`
}

// Vault is a secret source. Several may have the same address, with another login each.
type Vault struct {
	Name      string `json:"name"`
	Address   string `json:"address"`
	CA        string `json:"ca"`
	Namespace string `json:"namespace"`
	Mount     string `json:"mount"` // of KV v2, for entries that name none; default secret

	// Exactly one login.
	TokenFile   string            `json:"token_file"`
	AppRole     *AppRole          `json:"approle"`
	Kubernetes  *VaultJWT         `json:"kubernetes"`
	JWT         *VaultJWT         `json:"jwt"`
	Certificate *VaultCertificate `json:"certificate"`

	SessionRole    string   `json:"session_role"` // token role for leases; default claviger-session
	AuditSocket    string   `json:"audit_socket"` // unix socket of an audit device, as a hint at rotations (docs/vault.md)
	MaxConcurrency int      `json:"max_concurrency"`
	MaxQueue       int      `json:"max_queue"`
	Timeout        Duration `json:"timeout"`
}

// VaultJWT is a login by somebody else's token.
type VaultJWT struct {
	Mount string `json:"mount"`
	Role  string `json:"role"`
	File  string `json:"file"`
}

// VaultCertificate is a login by TLS client certificate.
type VaultCertificate struct {
	Mount string `json:"mount"`
	Role  string `json:"role"`
	Cert  string `json:"cert"`
	Key   string `json:"key"`
}

// source is the configuration of the adapter.
func (v Vault) source(log *slog.Logger) vault.Config {
	c := vault.Config{
		Name: v.Name, Address: v.Address, CAFile: v.CA, Namespace: v.Namespace, Mount: v.Mount, TokenFile: v.TokenFile,
		AppRole: (*vault.AppRole)(v.AppRole), Kubernetes: (*vault.JWT)(v.Kubernetes), JWT: (*vault.JWT)(v.JWT), SessionRole: v.SessionRole,
		MaxConcurrency: v.MaxConcurrency, MaxQueue: v.MaxQueue, Timeout: time.Duration(v.Timeout), Logger: log,
	}
	if k := v.Certificate; k != nil {
		c.Certificate = &vault.Certificate{Mount: k.Mount, Role: k.Role, CertFile: k.Cert, KeyFile: k.Key}
	}
	return c
}

// AppRole is a Vault login.
type AppRole struct {
	Mount        string `json:"mount"`
	RoleID       string `json:"role_id"`
	SecretIDFile string `json:"secret_id_file"`
	Wrapped      bool   `json:"wrapped"`
}

// Evidence says where collateral comes from.
type Evidence struct {
	Folder    string                            `json:"folder"`
	Bundle    string                            `json:"bundle"`
	BundleKey string                            `json:"bundle_key"` // PEM, Ed25519 public key
	Offline   bool                              `json:"offline"`    // never ask the vendors' services
	KDS       string                            `json:"kds"`
	PCS       string                            `json:"pcs"`
	RootCRL   string                            `json:"intel_root_crl"`
	Ages      map[attest.CollateralKind]AgeSpec `json:"ages"`
	TPM       TPM                               `json:"tpm"`
	GCE       GCE                               `json:"gce"`
	Nitro     Nitro                             `json:"nitro"`
	Keystone  Keystone                          `json:"keystone"`
	Results   []Result                          `json:"results"`
	PSA       Arm                               `json:"psa"`
	CCA       Arm                               `json:"cca"`
	NVIDIAGPU NVIDIAGPU                         `json:"nvidia_gpu"`
}

// files are those that say whose evidence is believed.
func (e Evidence) files() (out []string) {
	all := []string{e.TPM.EKRoots, e.TPM.EKIntermediates, e.TPM.AKRoots, e.GCE.AKRoots, e.PSA.Endorsements, e.CCA.Endorsements}
	for _, r := range e.Results {
		all = append(all, r.JWKS, r.Roots)
	}
	for _, f := range all {
		if f != "" {
			out = append(out, f)
		}
	}
	if folder := e.NVIDIAGPU.RIMs; folder != "" {
		rims, _ := filepath.Glob(filepath.Join(folder, "*.xml"))
		out = append(out, rims...)
	}
	return out
}

// TPM names the CAs that TPM evidence may end at; without any, none is believed.
type TPM struct {
	EKRoots         string   `json:"ek_roots"`         // PEM file: roots of TPM manufacturers
	EKIntermediates string   `json:"ek_intermediates"` // PEM file: their issuing CAs, for TPMs that do not hold them
	AKRoots         string   `json:"ak_roots"`         // PEM file: CAs that certify attestation keys directly
	ActivationLife  Duration `json:"activation_life"`  // default 1h
}

// GCE names the CAs of vTPMs of Google Compute Engine; without any, none is believed.
type GCE struct {
	AKRoots string `json:"ak_roots"` // PEM file: Google's CAs for attestation keys
}

// Nitro limits documents of AWS.
type Nitro struct {
	MaxAge Duration `json:"max_age"` // default 5m
}

// Keystone endorses devices and security monitors; without a device, none is believed.
type Keystone struct {
	DeviceKeys       []string `json:"device_keys"`       // Ed25519 public keys, 64 hex digits
	SecurityMonitors []string `json:"security_monitors"` // SHA3-512 of their images, 128 hex digits
}

// endorsed decodes both lists; what is of another size is an error that names the field.
func (k Keystone) endorsed() (devices [][32]byte, monitors [][64]byte, err error) {
	for i, s := range k.DeviceKeys {
		b, err := hex.DecodeString(s)
		if err != nil || len(b) != 32 {
			return nil, nil, fmt.Errorf("evidence.keystone.device_keys[%d]: %q is not 64 hex digits", i, s)
		}
		devices = append(devices, [32]byte(b))
	}
	for i, s := range k.SecurityMonitors {
		b, err := hex.DecodeString(s)
		if err != nil || len(b) != 64 {
			return nil, nil, fmt.Errorf("evidence.keystone.security_monitors[%d]: %q is not 128 hex digits", i, s)
		}
		monitors = append(monitors, [64]byte(b))
	}
	return devices, monitors, nil
}

// Result names another verifier whose tokens are believed; without any, none is.
type Result struct {
	Name          string          `json:"name"`    // the policies' word for it
	Dialect       results.Dialect `json:"dialect"` // ear, maa, ita or google
	Issuer        string          `json:"issuer"`  // claim iss; empty for an EAR verifier that states none
	Audience      string          `json:"audience"`
	JWKS          string          `json:"jwks"`  // file: the issuer's keys, a JSON Web Key Set
	Roots         string          `json:"roots"` // PEM file: CAs for tokens that bring their chain (x5c)
	MaxAge        Duration        `json:"max_age"`
	NonceAttested bool            `json:"nonce_attested"`
}

// issuer reads the files of evidence.results[i].
func (r Result) issuer() (results.Issuer, error) {
	out := results.Issuer{
		Name: r.Name, Dialect: r.Dialect, URL: r.Issuer, Audience: r.Audience, MaxAge: time.Duration(r.MaxAge), NonceAttested: r.NonceAttested,
	}
	if r.JWKS != "" {
		b, err := os.ReadFile(r.JWKS)
		if err != nil {
			return out, fmt.Errorf("jwks: %w", err)
		}
		if out.Keys, err = results.ParseKeys(b); err != nil {
			return out, fmt.Errorf("jwks: %s: %w", r.JWKS, err)
		}
	}
	if r.Roots != "" {
		var err error
		if out.Roots, err = certificates(r.Roots); err != nil {
			return out, fmt.Errorf("roots: %w", err)
		}
	}
	return out, nil
}

// Arm endorses attestation keys of devices or platforms; without any, none is believed.
type Arm struct {
	Endorsements string `json:"endorsements"` // JSON file (docs/evidence/psa.md)
}

// endorsed reads the file, if there is one.
func (a Arm) endorsed() ([]arm.Endorsement, error) {
	if a.Endorsements == "" {
		return nil, nil
	}
	b, err := os.ReadFile(a.Endorsements)
	if err != nil {
		return nil, err
	}
	list, err := arm.ParseEndorsements(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.Endorsements, err)
	}
	return list, nil
}

// NVIDIAGPU says what NVIDIA's devices are held to.
type NVIDIAGPU struct {
	RIMs string `json:"rims"` // folder: reference integrity manifests, NAME.xml, signed by NVIDIA
	OCSP string `json:"ocsp"` // "required" (default) or "optional"
}

// AgeSpec limits the age of a kind of collateral.
type AgeSpec struct {
	Refresh Duration `json:"refresh"`
	Max     Duration `json:"max"`
}

// Audit is the transparency log.
type Audit struct {
	Dir    string `json:"dir"`    // default data_dir/audit
	Origin string `json:"origin"` // the log's name; default "claviger/<host name>"
	// Keep is how long the content of entries is kept; 0: for ever. Their hashes always are, so proofs stay valid.
	Keep    Duration `json:"keep"`
	Archive string   `json:"archive"` // folder that older entries are moved to; empty: they are deleted
}

// Limits of admission; see rpc.Limits. What is 0 or absent has its default, but for peer_rate.
type Limits struct {
	Concurrency     int      `json:"concurrency"`
	Queue           int      `json:"queue"`
	QueueTime       Duration `json:"queue_time"`
	PeerRate        *float64 `json:"peer_rate"` // 0: no limit by address, of anything that is not set here
	PeerBurst       int      `json:"peer_burst"`
	Share56         int      `json:"peer_share_56"` // of an IPv6 /56, in multiples of a /64's limits
	Share48         int      `json:"peer_share_48"`
	Connections     int      `json:"connections"`
	PeerConnections int      `json:"peer_connections"`
	Streams         int      `json:"streams"`
	PeerStreams     int      `json:"peer_streams"`
	Patience        Duration `json:"patience"`
	Away            int      `json:"collateral_waits"`
	PeerAway        int      `json:"peer_collateral_waits"`
}

// check names the fields that are out of range: what nobody means is a slip.
func (l Limits) check(bad func(format string, args ...any)) {
	for _, f := range []struct {
		name     string
		value    int
		min, max int
	}{
		{"concurrency", l.Concurrency, 1, 4096}, {"queue", l.Queue, 1, 1 << 20}, {"peer_burst", l.PeerBurst, 1, 1 << 20},
		{"peer_share_56", l.Share56, 1, 256}, {"peer_share_48", l.Share48, 1, 1 << 16},
		{"connections", l.Connections, 16, 1 << 20}, {"peer_connections", l.PeerConnections, 1, 1 << 20},
		{"streams", l.Streams, 16, 1 << 16}, {"peer_streams", l.PeerStreams, 1, 1 << 16},
		{"collateral_waits", l.Away, 1, 1 << 16}, {"peer_collateral_waits", l.PeerAway, 1, 1 << 16},
	} {
		if f.value != 0 && (f.value < f.min || f.value > f.max) {
			bad("limits.%s: %d: want %d to %d", f.name, f.value, f.min, f.max)
		}
	}
	if r := l.PeerRate; r != nil && !(*r >= 0 && *r <= 1e6) { // NaN is neither
		bad("limits.peer_rate: %g: want 0 (no limit) to 1000000 a second", *r)
	}
	if d := time.Duration(l.QueueTime); d < 0 || d > 10*time.Minute {
		bad("limits.queue_time: %s: want at most 10m", d)
	}
	if d := time.Duration(l.Patience); d != 0 && (d < time.Second || d > 10*time.Minute) {
		bad("limits.patience: %s: want 1s to 10m", d)
	}
}

// Sessions are workloads that watch for new versions.
type Sessions struct {
	TTL      Duration `json:"ttl"`       // how long evidence is believed; default 15m
	OwnerTTL Duration `json:"owner_ttl"` // what leases are renewed for; default 2m
	Resume   Duration `json:"resume"`    // how long a session waits for a workload whose stream broke; default 1m
	Max      int      `json:"max"`       // watching this broker at once; default 20000
	Poll     Duration `json:"poll"`      // between two questions about a secret's version, once for all brokers; default 1s
}

// Tokens are attestation results (EAR) for relying parties (docs/tokens.md).
type Tokens struct {
	Issuer      string   `json:"issuer"`       // https URL that relying parties know the broker by; empty: no tokens
	Listen      string   `json:"listen"`       // HTTPS for discovery and keys, with tls; default 0.0.0.0:7446, "off" if something else serves them
	Algorithm   string   `json:"algorithm"`    // ES256 (default) or RS256
	MaxTTL      Duration `json:"max_ttl"`      // default 5m
	RotateEvery Duration `json:"rotate_every"` // a new signing key; default 720h
}

// LogConfig of the structured log on standard error.
type LogConfig struct {
	Level  string `json:"level"`  // debug, info, warn, error; default info
	Format string `json:"format"` // json or text; default json
}

// newLevel checks both fields.
func newLevel(c LogConfig) (level slog.Level, err error) {
	if c.Level != "" {
		if err := level.UnmarshalText([]byte(c.Level)); err != nil {
			return 0, fmt.Errorf("log.level: %q is none of debug, info, warn, error", c.Level)
		}
	}
	switch c.Format {
	case "", "json", "text":
		return level, nil
	}
	return 0, fmt.Errorf("log.format: %q is neither json nor text", c.Format)
}

// Tracing sends OpenTelemetry spans.
type Tracing struct {
	OTLP string `json:"otlp_endpoint"` // host:port of an OTLP/gRPC collector with TLS; empty: off
}

// Duration is written as "90s", "5m", "24h".
type Duration time.Duration

// UnmarshalText parses a duration.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a duration like 90s or 24h", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Load reads a file strictly: an unknown field is an error.
func Load(path string) (Config, error) {
	var c Config
	b, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("configuration: %w", err)
	}
	if err := strictyaml.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("configuration %s: %w", path, err)
	}
	c.Origin = &Origin{path, b}
	return c, nil
}

// Environment overrides the file: CLAVIGER_LISTEN, …
func (c *Config) Environment(getenv func(string) string) {
	for env, field := range map[string]*string{
		"CLAVIGER_LISTEN": &c.Listen, "CLAVIGER_DATA_DIR": &c.DataDir, "CLAVIGER_ADMIN_LISTEN": &c.Admin.Listen,
		"CLAVIGER_METRICS_LISTEN": &c.Metrics, "CLAVIGER_LOG_LEVEL": &c.Log.Level, "CLAVIGER_LOG_FORMAT": &c.Log.Format,
		"CLAVIGER_POLICY_DIR": &c.Policy.Dir, "CLAVIGER_SEAL_KEY_FILE": &c.SealKey,
	} {
		if v := getenv(env); v != "" {
			*field = v
		}
	}
}

// Complete fills in defaults and names the field that is wrong.
func (c *Config) Complete() error {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	def(&c.Listen, "0.0.0.0:7443")
	def(&c.Admin.Listen, "127.0.0.1:7444")
	def(&c.Metrics, "127.0.0.1:7445")
	def(&c.DataDir, "/var/lib/claviger")
	def(&c.Audit.Dir, filepath.Join(c.DataDir, "audit"))
	def(&c.Audit.Origin, "claviger/"+host)
	def(&c.Log.Level, "info")
	def(&c.Log.Format, "json")
	if c.Tokens.Issuer != "" {
		def(&c.Tokens.Listen, "0.0.0.0:7446")
		if c.Tokens.RotateEvery == 0 {
			c.Tokens.RotateEvery = Duration(30 * 24 * time.Hour)
		}
	}
	if c.Nonce == 0 {
		c.Nonce = Duration(2 * time.Minute)
	}
	if c.Admin.TLS == (TLSFiles{}) {
		c.Admin.TLS = c.TLS
	}
	if !c.Evidence.Offline {
		s := collateral.DefaultServices()
		def(&c.Evidence.KDS, s.KDS)
		def(&c.Evidence.PCS, s.PCS)
		def(&c.Evidence.RootCRL, s.IntelRootCRL)
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, c.Origin.at(fmt.Errorf(format, args...))) }
	if c.TestRoot != "" {
		bad("test_root: a test root makes SIMULATED hardware acceptable; `claviger serve` never loads one (`claviger dev` makes its own)")
	}
	addrs := map[string]string{"listen": c.Listen, "admin.listen": c.Admin.Listen, "metrics_listen": c.Metrics}
	if c.Tokens.Issuer != "" {
		addrs["tokens.listen"] = c.Tokens.Listen
	}
	for name, addr := range addrs {
		_, port, err := net.SplitHostPort(addr)
		if err == nil {
			_, err = net.LookupPort("tcp", port)
		}
		if err != nil && !(addr == "off" && name != "listen") {
			bad("%s: %q is not host:port", name, addr)
		}
	}
	if c.TLS.Cert == "" || c.TLS.Key == "" {
		bad("tls.cert, tls.key: missing; the broker speaks TLS only")
	}
	if c.Admin.Listen != "off" && c.Admin.ClientCA == "" {
		bad("admin.client_ca: missing; operators are known by client certificate (or set admin.listen: off)")
	}
	for name, role := range c.Admin.Operators {
		if role != rpc.Viewer && role != rpc.Operator {
			bad("admin.operators.%s: role %q is neither viewer nor operator", name, role)
		}
	}
	if c.Policy.Dir == "" {
		bad("policy.dir: missing")
	}
	if c.Policy.EvalSteps < 0 {
		bad("policy.eval_steps: %d is negative", c.Policy.EvalSteps)
	}
	if _, ok := c.Policy.Config["allow_simulated"]; ok {
		bad("policy.config.allow_simulated: only `claviger dev` sets this")
	}
	if (c.Evidence.Bundle == "") != (c.Evidence.BundleKey == "") {
		bad("evidence.bundle and evidence.bundle_key go together")
	}
	if d := time.Duration(c.Evidence.Nitro.MaxAge); d < 0 {
		bad("evidence.nitro.max_age: %s is negative", d)
	}
	if _, _, err := c.Evidence.Keystone.endorsed(); err != nil {
		bad("%w", err)
	}
	for i, r := range c.Evidence.Results {
		switch {
		case r.Name == "":
			bad("evidence.results[%d].name: missing", i)
		case r.JWKS == "" && r.Roots == "":
			bad("evidence.results[%d].jwks, roots: neither is set; no token would be believed", i)
		case r.MaxAge < 0:
			bad("evidence.results[%d].max_age: %s is negative", i, time.Duration(r.MaxAge))
		}
	}
	if o := c.Evidence.NVIDIAGPU.OCSP; o != "" && o != "required" && o != "optional" {
		bad("evidence.nvidia_gpu.ocsp: %q is neither required nor optional", o)
	}
	switch q := c.Etcd.QuotaMiB; {
	case q != 0 && len(c.Etcd.Endpoints) > 0:
		bad("etcd.quota_mib: an external cluster has its own, --quota-backend-bytes")
	case q != 0 && (q < etcd.MinQuota>>20 || q > 8<<10):
		bad("etcd.quota_mib: %d is outside %d to %d", q, etcd.MinQuota>>20, 8<<10)
	}
	if len(c.Etcd.Endpoints) > 0 && c.SealKey == "" {
		bad("seal_key_file: missing; brokers that share an etcd cluster need the same seal key")
	}
	if k := time.Duration(c.Audit.Keep); k > 0 && k < 24*time.Hour {
		bad("audit.keep: %s is less than a day", k)
	}
	for _, d := range []struct {
		field       string
		value       Duration
		least, most time.Duration
	}{
		{"nonce_lifetime", c.Nonce, 5 * time.Second, time.Hour},
		{"secret_ttl", c.SecretTTL, time.Second, 366 * 24 * time.Hour},
		{"policy.eval_timeout", c.Policy.EvalTimeout, time.Millisecond, time.Minute},
		{"etcd.compact", c.Etcd.compact(), 10 * time.Second, 24 * time.Hour},
		{"sessions.ttl", c.Sessions.TTL, time.Second, 30 * 24 * time.Hour},
		{"sessions.owner_ttl", c.Sessions.OwnerTTL, time.Second, 24 * time.Hour},
		{"sessions.resume", c.Sessions.Resume, time.Second, 24 * time.Hour},
		{"sessions.poll", c.Sessions.Poll, 10 * time.Millisecond, time.Hour},
		{"tokens.max_ttl", c.Tokens.MaxTTL, time.Second, 24 * time.Hour},
		{"tokens.rotate_every", c.Tokens.RotateEvery, time.Minute, 10 * 366 * 24 * time.Hour},
	} {
		if v := time.Duration(d.value); v != 0 && (v < d.least || v > d.most) {
			bad("%s: %s is outside %s to %s", d.field, v, d.least, d.most)
		}
	}
	if m := c.Sessions.Max; m < 0 || m > 1_000_000 {
		bad("sessions.max: %d is outside 0 to 1000000", m)
	}
	for i, v := range c.Vault {
		if v.MaxConcurrency < 0 || v.MaxConcurrency > 10_000 {
			bad("vault[%d].max_concurrency: %d is outside 0 to 10000", i, v.MaxConcurrency)
		}
		if v.MaxQueue < 0 || v.MaxQueue > 1_000_000 {
			bad("vault[%d].max_queue: %d is outside 0 to 1000000", i, v.MaxQueue)
		}
		if t := time.Duration(v.Timeout); t != 0 && (t < 10*time.Millisecond || t > 10*time.Minute) {
			bad("vault[%d].timeout: %s is outside 10ms to 10m", i, t)
		}
	}
	if _, err := newLevel(c.Log); err != nil {
		bad("%w", err)
	}
	if c.Audit.Archive != "" && c.Audit.Keep == 0 {
		bad("audit.archive: without audit.keep nothing is moved there")
	}
	if strings.ContainsAny(c.Audit.Origin, " +\n") {
		bad("audit.origin: %q has a space or plus sign", c.Audit.Origin)
	}
	c.Limits.check(bad)
	names := map[string]bool{"local": true, "token": c.Tokens.Issuer != ""}
	for i, v := range c.Vault {
		if v.Name == "" || names[v.Name] {
			bad("vault[%d].name: %q is empty or taken", i, v.Name)
		}
		if err := v.source(nil).Check(); err != nil {
			bad("vault[%d]: %w", i, err)
		}
		names[v.Name] = true
	}
	entries, err := c.catalog()
	if err == nil {
		_, err = broker.NewCatalog(entries)
	}
	if err != nil {
		bad("catalog: %w", err)
	}
	for i, e := range entries {
		if e.Source == "token" && !names["token"] {
			bad("catalog[%d].source: %s: source token: tokens.issuer is not configured", i, e.Pattern)
		} else if e.Source == "token" {
			if err := token.Check(e); err != nil {
				bad("catalog[%d]: %s: %w", i, e.Pattern, err)
			}
		} else if !names[e.Source] {
			bad("catalog[%d].source: %s: source %q is neither local nor a vault of this file", i, e.Pattern, e.Source)
		}
	}
	return errors.Join(errs...)
}

func (c *Config) catalog() ([]broker.CatalogEntry, error) {
	var out []broker.CatalogEntry
	for _, e := range c.Catalog {
		out = append(out, broker.CatalogEntry{
			Pattern: e.Pattern, Source: e.Source, Kind: broker.Kind(e.Kind), Mount: e.Mount, Key: e.Key, Field: e.Field, Policy: e.Policy,
			PinVersion: e.PinVersion, Options: e.Options, CreateBytes: e.CreateBytes, TTL: time.Duration(e.TTL), Grace: time.Duration(e.Grace),
			Rotatable: e.Rotatable, Rekey: e.Rekey, Priority: e.Priority, Labels: e.Labels,
		})
	}
	return out, nil
}

func (c *Config) limits() rpc.Limits {
	l := rpc.DefaultLimits()
	set := func(dst *int, v int) {
		if v > 0 {
			*dst = v
		}
	}
	if c.Limits.PeerRate != nil {
		l.PeerRate = *c.Limits.PeerRate
	}
	if l.PeerRate == 0 {
		l.PeerConnections, l.PeerStreams, l.PeerAway = 0, 0, 0
	}
	set(&l.Concurrency, c.Limits.Concurrency)
	set(&l.Queue, c.Limits.Queue)
	set(&l.PeerBurst, c.Limits.PeerBurst)
	set(&l.Share56, c.Limits.Share56)
	set(&l.Share48, c.Limits.Share48)
	set(&l.Connections, c.Limits.Connections)
	set(&l.PeerConnections, c.Limits.PeerConnections)
	set(&l.Streams, c.Limits.Streams)
	set(&l.PeerStreams, c.Limits.PeerStreams)
	set(&l.Away, c.Limits.Away)
	set(&l.PeerAway, c.Limits.PeerAway)
	if c.Limits.QueueTime > 0 {
		l.QueueTime = time.Duration(c.Limits.QueueTime)
	}
	if c.Limits.Patience > 0 {
		l.Patience = time.Duration(c.Limits.Patience)
	}
	return l
}
