package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/agent/deliver"
)

const defaultSecretsDir = "/run/claviger/secrets"

// serveConfig is the "serve" section of the agent's configuration file.
type serveConfig struct {
	Dir       string          `json:"dir"`
	AllowDisk bool            `json:"allow_disk"`
	Keep      bool            `json:"keep"`
	Files     []serveFile     `json:"files"`
	Templates []serveTemplate `json:"templates"`
	OnChange  struct {
		Command  []string `json:"command"`
		Timeout  string   `json:"timeout"`
		PIDFile  string   `json:"pid_file"`
		Signal   string   `json:"signal"`
		Required bool     `json:"required"`
	} `json:"on_change"`
	Socket struct {
		Path  string `json:"path"`
		Mode  string `json:"mode"`
		Group string `json:"group"`
		UIDs  []int  `json:"uids"`
	} `json:"socket"`
	Grace string `json:"grace"`
}

type serveFile struct {
	Resource string `json:"resource"`
	Input    string `json:"input"` // file: what the resource's kind wants from the workload
	Path     string `json:"path"`
	Mode     string `json:"mode"`
	Owner    string `json:"owner"`
	Group    string `json:"group"`
}

type serveTemplate struct {
	Source string `json:"source"`
	Path   string `json:"path"`
	Mode   string `json:"mode"`
	Owner  string `json:"owner"`
	Group  string `json:"group"`
}

func serveCommand(s *settings) *cobra.Command {
	var flags serveConfig
	var command string
	var inputs []string
	c := &cobra.Command{
		Use:   "serve [RESOURCE…]",
		Short: "Keep secrets in files (and a socket), and change them when they are rotated",
		Long: `Attest, keep the secrets as files below DIR/current, and replace all of them at
once whenever a new version arrives; run a command or signal a process then; answer
on a local socket. A version is acknowledged to the broker when it is in place.

DIR must be on tmpfs, so that no secret reaches a disk. The files are wiped when the
agent ends, and when the broker ends the session. Resources given here become files
under their own path; the "serve" section of the configuration file says more
(docs/agent.md).`,
		Example: `  claviger-agent serve db/orders db/users
  claviger-agent serve db/orders --on-change 'systemctl reload orders'
  claviger-agent serve certs/vm-7 --input certs/vm-7=csr.der --on-change 'systemctl reload nginx'
  claviger-agent serve --config /etc/claviger/agent.json
  curl --unix-socket /run/claviger/agent.sock http://agent/v1/secrets/db/orders`,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, done, err := s.client(cmd)
			if err != nil {
				return err
			}
			defer done()
			cfg := serveConfig{}
			if s.Serve != nil {
				cfg = *s.Serve
			}
			for _, r := range args {
				cfg.Files = append(cfg.Files, serveFile{Resource: r})
			}
			for _, in := range inputs {
				resource, file, ok := strings.Cut(in, "=")
				i := slices.IndexFunc(cfg.Files, func(f serveFile) bool { return f.Resource == resource })
				if !ok || file == "" || i < 0 {
					return fmt.Errorf("%w: --input %q is not RESOURCE=FILE with a resource that is served", errUsage, in)
				}
				cfg.Files[i].Input = file
			}
			if flags.Dir != "" {
				cfg.Dir = flags.Dir
			}
			if v := os.Getenv("CLAVIGER_SECRETS_DIR"); v != "" && flags.Dir == "" {
				cfg.Dir = v
			}
			if flags.Socket.Path != "" {
				cfg.Socket.Path = flags.Socket.Path
			}
			if command != "" {
				cfg.OnChange.Command = strings.Fields(command)
			}
			cfg.AllowDisk, cfg.Keep = cfg.AllowDisk || flags.AllowDisk, cfg.Keep || flags.Keep
			return cfg.run(cmd, client)
		},
	}
	f := c.Flags()
	f.StringArrayVar(&inputs, "input", nil, "RESOURCE=FILE: send this with the resource (a CSR, a ciphertext); may be repeated; read again for each attestation")
	f.StringVar(&flags.Dir, "dir", "", "folder for the files, on tmpfs (CLAVIGER_SECRETS_DIR; default "+defaultSecretsDir+")")
	f.BoolVar(&flags.AllowDisk, "allow-disk", false, "let the folder be on a disk")
	f.BoolVar(&flags.Keep, "keep", false, "leave the files when the agent ends")
	f.StringVar(&flags.Socket.Path, "socket", "", "answer on this unix socket")
	f.StringVar(&command, "on-change", "", "run this command after each change (words are split at spaces, no shell)")
	return c
}

// run delivers until the agent is told to stop, or the broker says no.
func (c serveConfig) run(cmd *cobra.Command, client *agent.Client) error {
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cfg, err := c.delivery(log)
	if err != nil {
		return fmt.Errorf("%w: serve: %w", errUsage, err)
	}
	if _, err := c.inputs(); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	cfg.Running = ctx
	d, err := deliver.New(cfg)
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			log.Error("cannot wipe the files", "error", err)
		}
	}()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if c.Socket.Path != "" {
		s, err := c.socket()
		if err != nil {
			return fmt.Errorf("%w: serve: socket: %w", errUsage, err)
		}
		l, err := s.Listen()
		if err != nil {
			return fmt.Errorf("serve: %w", err)
		}
		wg.Go(func() {
			if err := d.Serve(ctx, l, s); err != nil {
				log.Error("socket", "error", err)
			}
		})
	}
	notify("STATUS=attesting")
	var once sync.Once
	err = client.WatchWith(ctx, c.inputs, d.Resources(), func(ctx context.Context, s agent.Secret) error {
		if err := d.Take(ctx, s); err != nil {
			return err
		}
		once.Do(func() { notify("READY=1\nSTATUS=delivering") })
		return nil
	})
	notify("STOPPING=1")
	if ctx.Err() != nil && errors.Is(err, context.Canceled) { // told to stop
		return nil
	}
	return err
}

// inputs reads the files that go with resources.
func (c serveConfig) inputs() (map[string][]byte, error) {
	in := map[string][]byte{}
	for i, f := range c.Files {
		if f.Input == "" {
			continue
		}
		b, err := readInput(f.Input)
		if err != nil {
			return nil, fmt.Errorf("serve: files[%d].input: %w", i, err)
		}
		in[f.Resource] = b
	}
	return in, nil
}

func (c serveConfig) delivery(log *slog.Logger) (deliver.Config, error) {
	out := deliver.Config{Dir: c.Dir, AllowDisk: c.AllowDisk, Keep: c.Keep, Logger: log}
	if out.Dir == "" {
		out.Dir = defaultSecretsDir
	}
	var err error
	if out.Grace, err = duration(c.Grace); err != nil {
		return out, fmt.Errorf("grace: %w", err)
	}
	for i, f := range c.Files {
		mode, uid, gid, err := permissions(f.Mode, f.Owner, f.Group)
		if err != nil {
			return out, fmt.Errorf("files[%d]: %w", i, err)
		}
		out.Files = append(out.Files, deliver.File{Resource: f.Resource, Path: f.Path, Mode: mode, UID: uid, GID: gid})
	}
	for i, t := range c.Templates {
		mode, uid, gid, err := permissions(t.Mode, t.Owner, t.Group)
		if err != nil {
			return out, fmt.Errorf("templates[%d]: %w", i, err)
		}
		out.Templates = append(out.Templates, deliver.Template{Source: t.Source, Path: t.Path, Mode: mode, UID: uid, GID: gid})
	}
	o := c.OnChange
	out.OnChange = deliver.Command{Argv: o.Command, PIDFile: o.PIDFile, Required: o.Required}
	if out.OnChange.Timeout, err = duration(o.Timeout); err != nil {
		return out, fmt.Errorf("on_change.timeout: %w", err)
	}
	if o.PIDFile != "" {
		if o.Signal == "" {
			o.Signal = "SIGHUP"
		}
		if out.OnChange.Signal, err = signalNamed(o.Signal); err != nil {
			return out, fmt.Errorf("on_change.signal: %w", err)
		}
	}
	return out, nil
}

func (c serveConfig) socket() (deliver.Socket, error) {
	mode, _, gid, err := permissions(c.Socket.Mode, "", c.Socket.Group)
	return deliver.Socket{Path: c.Socket.Path, Mode: mode, GID: gid, UIDs: c.Socket.UIDs}, err
}

func duration(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q is not a duration like 90s", s)
	}
	return d, nil
}

// permissions reads a mode in octal, and an owner and group by name or number; -1 where none is given.
func permissions(mode, owner, group string) (m fs.FileMode, uid, gid int, err error) {
	uid, gid = -1, -1
	if mode != "" {
		n, err := strconv.ParseUint(mode, 8, 9)
		if err != nil {
			return 0, 0, 0, fmt.Errorf("mode: %q is not octal, as 0440", mode)
		}
		m = fs.FileMode(n)
	}
	if owner != "" {
		if uid, err = strconv.Atoi(owner); err != nil {
			u, err := user.Lookup(owner)
			if err != nil {
				return 0, 0, 0, fmt.Errorf("owner: %w", err)
			}
			uid, _ = strconv.Atoi(u.Uid)
		}
	}
	if group != "" {
		if gid, err = strconv.Atoi(group); err != nil {
			g, err := user.LookupGroup(group)
			if err != nil {
				return 0, 0, 0, fmt.Errorf("group: %w", err)
			}
			gid, _ = strconv.Atoi(g.Gid)
		}
	}
	return m, uid, gid, nil
}

func signalNamed(name string) (syscall.Signal, error) {
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	sig := unix.SignalNum(name)
	if sig == 0 {
		return 0, fmt.Errorf("%q is no signal", name)
	}
	return sig, nil
}

// notify tells systemd (sd_notify(3)), if it asked.
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if strings.HasPrefix(path, "@") {
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte(state))
}

// supervise runs a command that is restarted or signalled on rotation.
func (s *settings) supervise(cmd *cobra.Command, path string, argv, names, resources []string, watch string, jitter, grace time.Duration) error {
	child := deliver.Child{
		Path: path, Argv: argv, Env: map[string]string{}, Jitter: jitter, Grace: grace,
		Logger: slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)),
	}
	for i, name := range names {
		child.Env[name] = resources[i]
	}
	kind, sig, _ := strings.Cut(watch, "=")
	switch {
	case watch == "restart":
		child.Restart = true
	case watch == "none":
	case kind == "signal":
		var err error
		if child.Signal, err = signalNamed(sig); err != nil {
			return fmt.Errorf("%w: --watch: %w", errUsage, err)
		}
	default:
		return fmt.Errorf("%w: --watch is %q, want restart, signal=NAME or none", errUsage, watch)
	}
	client, done, err := s.client(cmd)
	if err != nil {
		return err
	}
	defer done()
	return child.Run(context.WithoutCancel(cmd.Context()), client) // signals are the command's
}
