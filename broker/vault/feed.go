package vault

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	maxLine  = 1 << 20
	maxFeeds = 16 // connections; Vault makes one for each audit device
)

// Feed listens to an audit device of Vault (type socket, socket_type unix) and
// tells which secrets have just changed: a few milliseconds after the write
// instead of at the next poll. It is a hint and no more. Whoever can write to
// the socket can make us look; passwords that Vault rotates on its own schedule
// do not appear; and lines are lost while nobody listens. So poll as well.
//
// DANGER: Vault refuses all requests while no audit device works. Never make
// this the only one:
//
//	vault audit enable file file_path=/var/log/vault/audit.log
//	vault audit enable -path=claviger socket address=/run/claviger/audit.sock socket_type=unix elide_list_responses=true
//
// The socket must be there when the second command runs, and Vault's user must be able to write to it.
type Feed struct {
	Socket string                   // path of the unix socket, which Run makes
	Mode   fs.FileMode              // of the socket; 0: 0660
	Notify func(mount, path string) // one changed secret, as in a catalog entry's Mount and Key; must be quick
	Logger *slog.Logger
}

// Run listens until ctx ends. It returns early only if it cannot listen at all.
func (f Feed) Run(ctx context.Context) error {
	def(&f.Logger, slog.New(slog.DiscardHandler))
	def(&f.Mode, 0o660)
	// A socket left by a crash stands in the way; anything else there is not ours.
	if info, err := os.Lstat(f.Socket); err == nil && info.Mode().Type() == fs.ModeSocket {
		if err := os.Remove(f.Socket); err != nil {
			return fmt.Errorf("vault feed: %w", err)
		}
	}
	l, err := net.Listen("unix", f.Socket)
	if err != nil {
		return fmt.Errorf("vault feed: %w", err)
	}
	defer l.Close()
	if err := os.Chmod(f.Socket, f.Mode); err != nil {
		return fmt.Errorf("vault feed: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxFeeds)
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			f.Logger.WarnContext(ctx, "vault feed: cannot accept", "error", err)
			time.Sleep(100 * time.Millisecond) // out of file descriptors, perhaps
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			f.Logger.WarnContext(ctx, "vault feed: too many connections")
			c.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			if err := f.follow(c); err != nil && ctx.Err() == nil {
				f.Logger.WarnContext(ctx, "vault feed: connection ended", "error", err)
			}
		})
	}
}

// follow reads lines to the end. A line that is too long or not understood is passed over.
func (f Feed) follow(r io.Reader) error {
	lines := bufio.NewReaderSize(r, 64<<10)
	var line []byte
	tooLong := false
	for {
		part, err := lines.ReadSlice('\n')
		if tooLong = tooLong || len(line)+len(part) > maxLine; !tooLong {
			line = append(line, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if mount, path, ok := changed(line); ok && !tooLong {
			f.Notify(mount, path)
		}
		line, tooLong = line[:0], false
	}
}

// changed reads a line of Vault's audit log. It says which secret the answered
// request has changed: KV v2 data, or a static database role.
func changed(line []byte) (mount, path string, ok bool) {
	var entry struct {
		Type    string `json:"type"`
		Error   string `json:"error"`
		Request struct {
			Operation  string `json:"operation"`
			Path       string `json:"path"`
			MountPoint string `json:"mount_point"`
			MountType  string `json:"mount_type"`
		} `json:"request"`
	}
	if json.Unmarshal(line, &entry) != nil || entry.Type != "response" || entry.Error != "" {
		return "", "", false
	}
	r := entry.Request
	below, ok := strings.CutPrefix(r.Path, r.MountPoint)
	mount, slash := strings.CutSuffix(r.MountPoint, "/")
	if !ok || !slash || mount == "" {
		return "", "", false
	}
	verb, path, _ := strings.Cut(below, "/")
	switch r.Operation {
	case "create", "update", "patch", "delete":
	default:
		return "", "", false
	}
	// These change which version is current, or end it.
	writes := r.MountType == "kv" && (verb == "data" || verb == "delete" || verb == "undelete" || verb == "destroy" || verb == "metadata" && r.Operation == "delete")
	rotates := r.MountType == "database" && (verb == "rotate-role" || verb == "static-roles")
	return mount, path, path != "" && (writes || rotates)
}
