package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// ErrFull is returned for writes that requests make when little room is left.
// Operators' records (Commit) and deletions have the rest.
var ErrFull = errors.New("the store of the shared state is full")

const (
	// minDisk is what must be left on an embedded member's file system. A full one ends the process.
	minDisk = 32 << 20
	// minDiskAtStart is that and the 64 MiB of log that etcd claims when it starts, and gives back when it stops.
	minDiskAtStart = minDisk + 64<<20
	// roomPeriod is how often the room is looked at when nobody asks for it.
	roomPeriod = 10 * time.Second
	// retryPeriod is how soon it is looked at again while there is none.
	retryPeriod = time.Second
	tidyTimeout = 10 * time.Minute
	// entryOverhead is what a key takes beside its name and value, and generous.
	entryOverhead = 512
)

// room is how full the store is, and who looks after it.
type room struct {
	log   *slog.Logger
	dir   string // of an embedded member
	quota int64  // of an embedded member
	tight chan struct{}

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	unseen atomic.Int64 // bytes that were written and an embedded member's size may not show yet

	mu        sync.Mutex
	size      Size  // guarded by mu; of a cluster, as last seen
	alarm     error // guarded by mu; why the store takes no writes
	compacted int64 // guarded by mu; up to this revision
}

// Size is how large the store is, in bytes. Quota is 0 if it does not tell.
type Size struct{ Bytes, InUse, Quota int64 }

// guests is up to where requests may fill the store. The rest is for operators'
// records, above all revocations, and for what it takes to make room.
func (z Size) guests() int64 { return z.Quota - max(z.Quota/10, 8<<20) }

func newRoom(log *slog.Logger) room {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return room{log: log, tight: make(chan struct{}, 1), ctx: ctx, cancel: cancel}
}

func (s *Store) background(f func(context.Context)) { s.room.wg.Go(func() { f(s.room.ctx) }) }

func (r *room) stop() {
	r.cancel()
	r.wg.Wait()
}

// Size is how full the store is. Of a cluster, it is as it was a few seconds ago: the fullest member.
func (s *Store) Size() Size {
	if s.server != nil {
		b := s.server.Server.Backend()
		return Size{Bytes: b.Size(), InUse: b.SizeInUse(), Quota: s.room.quota}
	}
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	return s.room.size
}

// Health says why requests' writes are refused, nil if they are not.
func (s *Store) Health() error {
	s.room.mu.Lock()
	alarm := s.room.alarm
	s.room.mu.Unlock()
	if alarm != nil {
		return alarm
	}
	z := s.Size()
	if z.Quota > 0 && z.Bytes >= z.guests() {
		return fmt.Errorf("%w: %d of %d MiB, of which the last %d are kept for operators: see docs/operations.md", ErrFull, z.Bytes>>20, z.Quota>>20, (z.Quota-z.guests())>>20)
	}
	if s.server != nil {
		if free, err := freeDisk(s.room.dir); err == nil && free < minDisk {
			return fmt.Errorf("%w: its file system has %d MiB left, want %d", ErrFull, free>>20, minDisk>>20)
		}
	}
	return nil
}

// count notes that n bytes are to be written. An embedded member's size is that of its
// last commit, up to 100 ms ago, in which a fast disk takes more than all that
// is kept for operators: so it is made to commit whenever a good part of that was written.
func (s *Store) count(n int) {
	if s.server == nil || s.room.unseen.Add(int64(n)+entryOverhead) < (s.room.quota-(Size{Quota: s.room.quota}).guests())/16 {
		return
	}
	s.room.unseen.Store(0)
	s.server.Server.Backend().ForceCommit()
}

// spare refuses a request's write of n bytes for which there is no room.
func (s *Store) spare(n int) error {
	s.count(n)
	err := s.Health()
	if err != nil {
		signal(s.room.tight)
	}
	return err
}

// failed looks at why a write failed: a store that refuses it wants to be tidied.
func (s *Store) failed(err error) error {
	if errors.Is(err, rpctypes.ErrNoSpace) {
		signal(s.room.tight)
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// keepRoom tidies an embedded member's store when that is worthwhile, until ctx ends.
func (s *Store) keepRoom(ctx context.Context) {
	t := time.NewTimer(roomPeriod)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-s.room.tight:
		}
		s.tidy(ctx)
		next := roomPeriod
		if s.Health() != nil {
			next = retryPeriod
		}
		t.Reset(next)
		select { // many requests that find no room are one reason to look, now and then
		case <-ctx.Done():
			return
		case <-time.After(retryPeriod):
		}
	}
}

// tidy compacts, defragments and lifts the alarm, as far as each is of use.
// Defragmenting holds up every request for as long as it takes to copy what is
// in use, so it is done only if it frees a good part: under pressure a twentieth
// of the quota, otherwise half of a store that is past half of the quota. A store
// that takes no writes cannot tell how much it is, and holds up nobody.
func (s *Store) tidy(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, tidyTimeout)
	defer cancel()
	full, other, err := s.alarms(ctx)
	if err != nil {
		if ctx.Err() == nil {
			s.room.log.Warn("cannot ask the store for its alarms", "error", err)
		}
		return
	}
	z := s.Size()
	pressed := len(full) > 0 || z.Bytes >= z.guests()
	compacted := false
	if pressed {
		if compacted, err = s.compact(ctx, len(full) == 0); err != nil && ctx.Err() == nil {
			s.room.log.Warn("cannot compact the store", "error", err)
		}
		z = s.Size()
	}
	free := z.Bytes - z.InUse
	if compacted && len(full) > 0 || pressed && free >= z.Quota/20 || z.Bytes >= z.Quota/2 && free >= z.Bytes/2 {
		before, at := z, time.Now()
		if err := s.server.Server.Backend().Defrag(); err != nil {
			s.room.log.Error("cannot defragment the store", "error", err)
			return
		}
		z = s.Size()
		s.room.log.Info("defragmented the store", "bytes_before", before.Bytes, "bytes", z.Bytes, "quota", z.Quota, "ms", time.Since(at).Milliseconds())
	}
	// Lifted as soon as anything fits again: requests' writes have a bound of their own.
	if len(full) > 0 && z.Bytes < z.Quota-(z.Quota-z.guests())/2 {
		for _, a := range full {
			if _, err := s.client.AlarmDisarm(ctx, a); err != nil {
				s.room.log.Error("cannot lift the store's alarm", "error", err)
				return
			}
		}
		s.room.log.Info("the store has room again", "bytes", z.Bytes, "quota", z.Quota)
		full = nil
	}
	s.setAlarm(describe(append(full, other...)))
}

// compact forgets all but the newest of each key, and reports whether there was
// anything to forget. The database counts pages as free from the next write on,
// and there may be none: so it is given one, if it is writable.
func (s *Store) compact(ctx context.Context, writable bool) (bool, error) {
	rev, err := s.revision(ctx)
	if err != nil {
		return false, err
	}
	s.room.mu.Lock()
	done := s.room.compacted >= rev
	s.room.mu.Unlock()
	if done {
		return false, nil
	}
	if _, err := s.client.Compact(ctx, rev, clientv3.WithCompactPhysical()); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return false, err
	}
	s.server.Server.Backend().ForceCommit()
	if writable {
		r, err := s.client.Put(ctx, root+"compacted", "")
		if err != nil {
			return true, err
		}
		rev = r.Header.Revision
		s.server.Server.Backend().ForceCommit()
	}
	s.room.mu.Lock()
	s.room.compacted = rev
	s.room.mu.Unlock()
	return true, nil
}

// alarms are those that say that the store is full, which room makes untrue, and all others.
func (s *Store) alarms(ctx context.Context) (full, other []*clientv3.AlarmMember, err error) {
	r, err := s.client.AlarmList(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, a := range r.Alarms {
		if m := (*clientv3.AlarmMember)(a); a.GetAlarm() == etcdserverpb.AlarmType_NOSPACE {
			full = append(full, m)
		} else {
			other = append(other, m)
		}
	}
	return full, other, nil
}

func describe(alarms []*clientv3.AlarmMember) string {
	var out []string
	for _, a := range alarms {
		out = append(out, a.Alarm.String())
	}
	return strings.Join(out, ", ")
}

// setAlarm notes which alarms there are, "" being none, and logs what is news.
func (s *Store) setAlarm(what string) {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	was := s.room.alarm
	s.room.alarm = nil
	if what == "" {
		return
	}
	s.room.alarm = fmt.Errorf("%w, or broken: etcd takes only deletions (alarm %s): see docs/operations.md", ErrFull, what)
	if was == nil || was.Error() != s.room.alarm.Error() {
		s.room.log.Error("the store takes no more writes", "error", s.room.alarm)
	}
}

// watchCluster looks at the size and the alarms of an external cluster, until
// ctx ends. To compact and defragment it is for those who run it.
func (s *Store) watchCluster(ctx context.Context) {
	t := time.NewTicker(roomPeriod)
	defer t.Stop()
	for {
		s.lookAtCluster(ctx)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-s.room.tight:
			select {
			case <-ctx.Done():
				return
			case <-time.After(retryPeriod):
			}
		}
	}
}

func (s *Store) lookAtCluster(ctx context.Context) {
	var fullest Size
	var alarms []string
	answers := 0
	for _, e := range s.client.Endpoints() {
		one, cancel := context.WithTimeout(ctx, time.Second)
		r, err := s.client.Status(one, e)
		cancel()
		if err != nil {
			continue // whether it answers at all is seen elsewhere
		}
		answers++
		if r.DbSize > fullest.Bytes {
			fullest = Size{Bytes: r.DbSize, InUse: r.DbSizeInUse, Quota: r.DbSizeQuota}
		}
		for _, e := range r.Errors {
			if strings.Contains(e, "alarm") || strings.Contains(e, "NOSPACE") || strings.Contains(e, "CORRUPT") {
				alarms = append(alarms, e)
			}
		}
	}
	if answers == 0 {
		return
	}
	s.room.mu.Lock()
	s.room.size = fullest
	s.room.mu.Unlock()
	slices.Sort(alarms)
	s.setAlarm(strings.Join(slices.Compact(alarms), ", "))
}

// freeDisk is how many bytes are left on the file system of dir.
func freeDisk(dir string) (int64, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return 0, err
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}
