package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// DefaultQuota is how many bytes an embedded member's store may have.
	DefaultQuota = 2 << 30
	// MinQuota leaves etcd room to work.
	MinQuota = 32 << 20
)

// Member is an embedded etcd.
type Member struct {
	Dir    string
	Quota  int64        // bytes; 0: DefaultQuota
	Logger *slog.Logger // what etcd warns of, and why it ends the process; nil: nowhere
}

// StartMember starts a single member: in process, without a port. A store that is
// full, or holds more than it needs to, is tidied before it is used.
func StartMember(ctx context.Context, m Member) (*Store, error) {
	if m.Quota == 0 {
		m.Quota = DefaultQuota
	}
	if m.Quota < MinQuota {
		return nil, fmt.Errorf("quota: %d bytes are less than %d", m.Quota, MinQuota)
	}
	if m.Logger == nil {
		m.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(m.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	// etcd ends the process when it cannot write. Better not to begin.
	if free, err := freeDisk(m.Dir); err == nil && free < minDiskAtStart {
		return nil, fmt.Errorf("state directory %s: the file system has %d MiB left, want %d to start: make room", m.Dir, free>>20, minDiskAtStart>>20)
	}
	cfg := embed.NewConfig()
	cfg.Name = "claviger"
	cfg.Dir = filepath.Join(m.Dir, "etcd")
	cfg.ListenClientUrls, cfg.ListenPeerUrls = nil, nil
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = "revision", "1000"
	cfg.SnapshotCount = 1000
	cfg.QuotaBackendBytes = m.Quota
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(bridge{m.Logger}))
	srv, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("start embedded etcd in %s: %w", cfg.Dir, err)
	}
	select {
	case <-srv.Server.ReadyNotify():
	case err := <-srv.Err():
		srv.Close()
		return nil, fmt.Errorf("start embedded etcd in %s: %w", cfg.Dir, err)
	case <-ctx.Done():
		srv.Close()
		return nil, fmt.Errorf("start embedded etcd in %s: %w", cfg.Dir, ctx.Err())
	}
	s := &Store{client: v3client.New(srv.Server), server: srv, leases: map[int64]clientv3.LeaseID{}, room: newRoom(m.Logger)}
	s.room.quota, s.room.dir = m.Quota, m.Dir
	s.tidy(ctx)
	s.background(s.keepRoom)
	return s, nil
}

// bridge passes on what etcd logs from warnings upwards. What is fatal must be
// written before etcd ends the process, so it must not go through a queue.
type bridge struct{ log *slog.Logger }

func (b bridge) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (b bridge) With(fields []zapcore.Field) zapcore.Core {
	return bridge{b.log.With(attrs(fields)...)}
}

func (b bridge) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if b.Enabled(e.Level) && !slices.ContainsFunc(noise, func(n string) bool { return strings.Contains(e.Message, n) }) {
		return c.AddCore(e, b)
	}
	return c
}

func (b bridge) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	if e.Level >= zapcore.ErrorLevel {
		level = slog.LevelError
	}
	if e.Level >= zapcore.DPanicLevel {
		fields = append(fields, zap.String("then", "etcd ends this process"))
	}
	b.log.Log(context.Background(), level, "etcd: "+e.Message, attrs(fields)...)
	return nil
}

func (b bridge) Sync() error { return nil }

// noise is about listeners and tokens, of which this member has none, and about
// a new store: its version, which it has after its first snapshot, and its first election.
var noise = []string{
	"Running http and grpc server on single port. This is not recommended for production.",
	"simple token is not cryptographically signed",
	"Failed to detect schema version", "failed to update storage version",
	"cannot campaign at term 1 since there are still pending configuration changes",
	"setting up serving from embedded etcd failed.", // on every clean close
}

func attrs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	var out []any
	for _, f := range fields {
		f.AddTo(enc)
	}
	for k, v := range enc.Fields {
		if s, ok := v.(string); ok {
			v = strings.ToValidUTF8(s, "\ufffd")
		}
		out = append(out, slog.Any(k, v))
	}
	return out
}

// Embedded is StartMember with the defaults.
func Embedded(ctx context.Context, dir string) (*Store, error) {
	return StartMember(ctx, Member{Dir: dir})
}
