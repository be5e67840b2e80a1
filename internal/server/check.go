package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/claviger/claviger/broker/state"
	"github.com/claviger/claviger/policy"
)

// Check finds what would keep a broker with this configuration from starting, or
// from releasing what its catalog has: it reads every file that the configuration
// names, compiles the policies, and holds the catalog against them. It writes nothing, and asks no server.
func Check(ctx context.Context, cfg Config, opt Options) error {
	if err := cfg.Complete(); err != nil {
		return err
	}
	s := &Server{cfg: cfg, opt: opt, log: opt.Logger}
	var errs []error
	bad := func(field string, err error) {
		if err != nil {
			errs = append(errs, cfg.Origin.at(fmt.Errorf("%s: %w", field, err)))
		}
	}
	log := slog.New(slog.DiscardHandler)
	_, err := serverTLS(log, cfg.TLS, "")
	bad("tls", err)
	if cfg.Admin.Listen != "off" {
		_, err := serverTLS(log, cfg.Admin.TLS, cfg.Admin.ClientCA)
		bad("admin", err)
	}
	if cfg.SealKey != "" {
		bad("seal_key_file", checkPrivate(cfg.SealKey))
	}
	if len(cfg.Etcd.Endpoints) > 0 {
		_, err := s.cluster()
		errs = append(errs, err)
	}
	keys, err := s.verificationKeys()
	errs = append(errs, err)
	engine, err := policy.New(policy.Config{Dir: cfg.Policy.Dir, VerificationKeys: keys, ExtraData: s.policyConfig(), EvalTimeout: time.Duration(cfg.Policy.EvalTimeout), EvalSteps: cfg.Policy.EvalSteps})
	bad("policy.dir", err)
	if err == nil {
		entries, err := cfg.catalog()
		errs = append(errs, err)
		for i, e := range entries {
			bad(fmt.Sprintf("catalog[%d].policy", i), releasable(engine, e))
		}
	}
	_, err = s.verifiers(ctx, func(context.Context) ([]byte, error) { return state.GenerateKey32() })
	errs = append(errs, err)
	for i, v := range cfg.Vault {
		for field, file := range v.files() {
			bad(fmt.Sprintf("vault[%d].%s", i, field), readable(file))
		}
	}
	bad("data_dir", makeable(cfg.DataDir))
	bad("audit.dir", makeable(cfg.Audit.Dir))
	if cfg.Audit.Archive != "" {
		bad("audit.archive", makeable(cfg.Audit.Archive))
	}
	if cfg.Evidence.Folder != "" {
		_, err := os.ReadDir(cfg.Evidence.Folder)
		bad("evidence.folder", err)
	}
	if e := cfg.Evidence; e.Bundle != "" {
		if _, err := e.readBundle(); err != nil {
			errs = append(errs, cfg.Origin.at(err))
		}
	}
	return errors.Join(errs...)
}

// files are those that a source of Vault reads, by field; empty names are left out.
func (v Vault) files() map[string]string {
	all := map[string]string{"ca": v.CA, "token_file": v.TokenFile}
	if l := v.AppRole; l != nil {
		all["approle.secret_id_file"] = l.SecretIDFile
	}
	if l := v.Kubernetes; l != nil {
		all["kubernetes.file"] = l.File
	}
	if l := v.JWT; l != nil {
		all["jwt.file"] = l.File
	}
	if l := v.Certificate; l != nil {
		all["certificate.cert"], all["certificate.key"] = l.Cert, l.Key
	}
	maps.DeleteFunc(all, func(_, file string) bool { return file == "" })
	return all
}

func readable(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	return f.Close()
}

// makeable says why a folder could not be made, or used if it is there; it makes nothing.
func makeable(dir string) error {
	for at := filepath.Clean(dir); ; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		switch {
		case errors.Is(err, fs.ErrNotExist) && at != filepath.Dir(at):
			continue
		case err != nil:
			return err
		case !info.IsDir():
			return fmt.Errorf("%s is not a folder", at)
		case at == filepath.Clean(dir):
			return checkOwner(dir)
		}
		if err := unix.Access(at, unix.W_OK|unix.X_OK); err != nil {
			return fmt.Errorf("%s cannot be made: %s: %w", dir, at, err)
		}
		return nil
	}
}
