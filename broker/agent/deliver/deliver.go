// Package deliver hands watched secrets to a workload that knows nothing of
// Claviger: as files that change all at once, rendered templates, a command or
// signal on change, and a local socket. A version counts as delivered, and is
// acknowledged, when it is in place.
package deliver

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/claviger/claviger/broker/agent"
)

// Watcher gives new versions; agent.Client is one.
type Watcher interface {
	Watch(ctx context.Context, resources []string, on func(context.Context, agent.Secret) error) error
}

// Config says what goes where.
type Config struct {
	Dir       string // on tmpfs; secrets are in Dir/current
	AllowDisk bool   // let Dir be on another file system
	Files     []File
	Templates []Template
	OnChange  Command
	// Grace is how long the files of the generation before stay where a reader may
	// still have them open by name. 0: 10 s.
	Grace  time.Duration
	Keep   bool // leave the files when the agent ends
	Logger *slog.Logger
	// Running ends what runs on change. It is not the stream's, which a bad network ends in the middle of it. Nil: only its timeout does.
	Running context.Context
}

// File is one secret as a file.
type File struct {
	Resource string
	Path     string      // below Dir/current; empty: the resource's own path
	Mode     fs.FileMode // 0: 0400
	UID, GID int         // -1: the agent's
}

// Template is a file with secrets in it: {{secret "R"}}, {{base64 "R"}}, {{field "R" "NAME"}}.
type Template struct {
	Source   string // file with the template
	Path     string // below Dir/current
	Mode     fs.FileMode
	UID, GID int
}

// Delivery holds the versions in force. Make it with New, give versions to Take.
type Delivery struct {
	cfg       Config
	resources []string
	root      *os.Root
	log       *slog.Logger

	publishing sync.Mutex // one generation at a time

	mu        sync.Mutex
	newest    map[string]*version // as received; guarded by mu
	inForce   map[string]*version // of the generation in force; guarded by mu
	changed   chan struct{}       // closed when either changes; guarded by mu
	lastError string              // guarded by mu; why the newest version is not in place
	current   string              // name of the generation in force; guarded by mu
	number    int                 // guarded by publishing
	owed      bool                // a required command failed for the generation in force; guarded by publishing
	salt      string              // of the ids of what has no version
}

type version struct {
	value       []byte
	id          string // the version; of what has none, such as a token, a digest
	contentType string
	since       time.Time
}

const maxRendered = 1 << 20

// New checks the configuration and the folder, and removes what an earlier run left there.
func New(cfg Config) (*Delivery, error) {
	if cfg.Grace == 0 {
		cfg.Grace = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Delivery{cfg: cfg, log: cfg.Logger, newest: map[string]*version{}, inForce: map[string]*version{}, changed: make(chan struct{}), salt: rand.Text()}
	paths := map[string]bool{}
	claim := func(field, p string) error {
		if !fs.ValidPath(p) || p == "." {
			return fmt.Errorf("%s: path %q is not a plain relative path", field, p)
		}
		if paths[p] {
			return fmt.Errorf("%s: path %q is taken", field, p)
		}
		paths[p] = true
		return nil
	}
	for i, f := range d.cfg.Files {
		if f.Path == "" {
			d.cfg.Files[i].Path = f.Resource
		}
		if err := claim(fmt.Sprintf("files[%d]", i), d.cfg.Files[i].Path); err != nil {
			return nil, err
		}
		if !slices.Contains(d.resources, f.Resource) {
			d.resources = append(d.resources, f.Resource)
		}
	}
	for i, t := range cfg.Templates {
		if err := claim(fmt.Sprintf("templates[%d]", i), t.Path); err != nil {
			return nil, err
		}
		named, err := resourcesOf(t.Source)
		if err != nil {
			return nil, fmt.Errorf("templates[%d]: %w", i, err)
		}
		for _, r := range named {
			if !slices.Contains(d.resources, r) {
				d.resources = append(d.resources, r)
			}
		}
	}
	if len(d.resources) == 0 {
		return nil, errors.New("nothing to deliver: no files and no templates")
	}
	if err := checkDir(cfg.Dir, cfg.AllowDisk); err != nil {
		return nil, err
	}
	var err error
	if d.root, err = os.OpenRoot(cfg.Dir); err != nil {
		return nil, fmt.Errorf("dir: %w", err)
	}
	if err := d.clean(); err != nil {
		d.root.Close()
		return nil, err
	}
	return d, nil
}

// Resources are all that files and templates need.
func (d *Delivery) Resources() []string { return slices.Clone(d.resources) }

// Take puts a version in place, together with all others in force. It
// returns nil when that is done, and waits for resources that never came yet.
// A version that cannot be put in place does not keep those of others from it.
func (d *Delivery) Take(ctx context.Context, s agent.Secret) error {
	v := &version{slices.Clone(s.Value), cmp.Or(s.Version, d.digest(s.Value)), s.ContentType, time.Now()}
	d.mu.Lock()
	d.newest[s.Resource] = v
	d.wake()
	d.mu.Unlock()
	for {
		d.mu.Lock()
		complete, changed := len(d.newest) == len(d.resources), d.changed
		d.mu.Unlock()
		if complete {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err := d.publish(ctx, s.Resource, v)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		d.lastError = ""
		return nil
	}
	if text := err.Error(); text != d.lastError {
		d.lastError = text
		d.log.ErrorContext(ctx, "cannot deliver a version, the one before stays", "resource", s.Resource, "version", s.Version, "error", err)
	}
	return err
}

func (d *Delivery) digest(value []byte) string {
	sum := sha256.Sum256(append([]byte(d.salt), value...))
	return hex.EncodeToString(sum[:8])
}

// wake tells all who wait. d.mu is held.
func (d *Delivery) wake() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// publish writes a generation with a version in it, unless that is in force already.
func (d *Delivery) publish(ctx context.Context, resource string, v *version) error {
	d.publishing.Lock()
	defer d.publishing.Unlock()
	d.mu.Lock()
	before := d.inForce[resource]
	// (A version's number may come again, where a secret was deleted with its history.)
	done := before != nil && before.id == v.id && bytes.Equal(before.value, v.value)
	all := maps.Clone(d.inForce)
	if len(all) == 0 {
		all = maps.Clone(d.newest) // the first generation
	}
	all[resource] = v
	old := d.current
	d.mu.Unlock()
	if done && !d.owed {
		return nil
	}
	if done {
		return d.command(ctx)
	}
	d.number++
	gen := fmt.Sprintf("gen-%d-%06d", os.Getpid(), d.number)
	if err := d.write(gen, all); err != nil {
		wipe(d.root, gen)
		return err
	}
	if err := d.swap(gen); err != nil {
		wipe(d.root, gen)
		return err
	}
	d.mu.Lock()
	d.current, d.inForce = gen, all
	d.wake()
	d.mu.Unlock()
	if before != nil {
		clear(before.value)
	}
	if old != "" {
		time.AfterFunc(d.cfg.Grace, func() { wipe(d.root, old) })
	}
	d.log.InfoContext(ctx, "delivered", "generation", gen, "resource", resource, "version", v.id)
	return d.command(ctx)
}

// command runs what is to run on change; if it must succeed and did not, it is owed. d.publishing is held.
func (d *Delivery) command(ctx context.Context) error {
	err := d.cfg.OnChange.run(cmp.Or(d.cfg.Running, context.WithoutCancel(ctx)), d.log)
	d.owed = err != nil
	return err
}

// write makes all files of a generation.
func (d *Delivery) write(gen string, held map[string]*version) error {
	if err := d.mkdir(gen); err != nil {
		return fmt.Errorf("make generation: %w", err)
	}
	for _, f := range d.cfg.Files {
		if err := d.writeFile(path.Join(gen, f.Path), held[f.Resource].value, f.Mode, f.UID, f.GID); err != nil {
			return err
		}
	}
	for _, t := range d.cfg.Templates {
		b, err := render(t.Source, held)
		if err != nil {
			return err
		}
		err = d.writeFile(path.Join(gen, t.Path), b, t.Mode, t.UID, t.GID)
		clear(b)
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *Delivery) writeFile(name string, data []byte, mode fs.FileMode, uid, gid int) (err error) {
	if mode == 0 {
		mode = 0o400
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", name, err)
		}
	}()
	if err := d.mkdirs(path.Dir(name)); err != nil {
		return err
	}
	// O_EXCL in a new folder, below a root that no link leads out of: nobody's file is written over.
	f, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && (uid > 0 || gid > 0) {
		err = f.Chown(uid, gid)
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	return errors.Join(err, f.Close())
}

// mkdir makes a folder that others can pass through, whatever the umask.
func (d *Delivery) mkdir(name string) error {
	if err := d.root.Mkdir(name, 0o711); err != nil {
		return err
	}
	return d.root.Chmod(name, 0o711)
}

func (d *Delivery) mkdirs(name string) error {
	if _, err := d.root.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := d.mkdirs(path.Dir(name)); err != nil {
		return err
	}
	return d.mkdir(name)
}

// swap puts a generation in force: one rename, so that no reader sees a mix.
func (d *Delivery) swap(gen string) error {
	const next = "current.next"
	if err := d.root.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("swap: %w", err)
	}
	if err := d.root.Symlink(gen, next); err != nil {
		return fmt.Errorf("swap: %w", err)
	}
	if err := d.root.Rename(next, "current"); err != nil {
		return fmt.Errorf("swap: %w", err)
	}
	return nil
}

// clean removes what an earlier run left: nobody knows whether it is still good.
func (d *Delivery) clean() error {
	entries, err := fs.ReadDir(d.root.FS(), ".")
	if err != nil {
		return fmt.Errorf("dir: %w", err)
	}
	for _, e := range entries {
		switch {
		case strings.HasPrefix(e.Name(), "gen-") && e.IsDir():
			wipe(d.root, e.Name())
		case e.Name() == "current" || e.Name() == "current.next":
			if e.Type()&fs.ModeSymlink == 0 {
				return fmt.Errorf("dir: %s is not a link that this agent made", e.Name())
			}
			if err := d.root.Remove(e.Name()); err != nil {
				return fmt.Errorf("dir: %w", err)
			}
		}
	}
	return nil
}

// Close wipes the files, unless they are to be kept, and the memory.
func (d *Delivery) Close() error {
	d.publishing.Lock()
	defer d.publishing.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	var err error
	if !d.cfg.Keep {
		err = d.clean()
	}
	for _, m := range []map[string]*version{d.newest, d.inForce} {
		for _, v := range m {
			clear(v.value)
		}
	}
	return errors.Join(err, d.root.Close())
}

// wipe overwrites the files of a generation and removes them.
func wipe(root *os.Root, gen string) {
	_ = fs.WalkDir(root.FS(), gen, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil
		}
		if root.Chmod(p, 0o600) != nil {
			return nil
		}
		f, err := root.OpenFile(p, os.O_WRONLY, 0)
		if err != nil {
			return nil
		}
		defer f.Close()
		if info, err := f.Stat(); err == nil {
			_, _ = f.Write(make([]byte, info.Size()))
		}
		return nil
	})
	_ = root.RemoveAll(gen)
}
