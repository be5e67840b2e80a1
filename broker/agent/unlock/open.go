package unlock

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Asker has a person type a passphrase or recovery key. It returns when one was
// typed, when ctx ends, or with an error if nobody can be asked.
type Asker func(ctx context.Context, prompt string) ([]byte, error)

// Opening is how a boot opens volumes.
type Opening struct {
	// ByBroker opens a volume with its key from a broker. It ends with its context.
	ByBroker func(ctx context.Context, v Volume) error
	// Ask is nil where no person is to be asked.
	Ask Asker
	// Timeout is for disks to appear and brokers to answer. A person has all the time of the context.
	Timeout time.Duration
	// Again is how long after a failure a broker is asked again while a person is being asked: it may be back long
	// before anybody comes to the console. Default 30 s.
	Again time.Duration
}

// maxTries bounds the passphrases typed for one volume.
const maxTries = 5

// attempt is a volume on its way to being open.
type attempt struct {
	volume Volume
	closed context.Context // ends when the volume is open, or the whole call ends
	opened context.CancelFunc
	err    error // why it is not open
}

// OpenAll opens volumes, all at once: none waits for another's disk. Meanwhile
// a person may type passphrases for those whose disks are there, in their turn;
// whichever comes first opens a volume. It says how many are open; the error is about the others.
func (u *Unlocker) OpenAll(ctx context.Context, volumes []Volume, o Opening) (open int, err error) {
	if o.Again == 0 {
		o.Again = 30 * time.Second
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	asking, asked := context.WithCancel(ctx) // ends when no person is asked any more
	defer asked()
	broker := make(chan *attempt, len(volumes))
	attempts := make([]*attempt, len(volumes))
	for i, v := range volumes {
		a := &attempt{volume: v}
		a.closed, a.opened = context.WithCancel(ctx)
		attempts[i] = a
		go func() {
			for again := true; again; {
				ctx, cancel := context.WithTimeout(a.closed, o.Timeout)
				a.err = o.ByBroker(ctx, v)
				cancel()
				if a.err == nil {
					a.opened()
					break
				}
				if a.closed.Err() == nil && (o.Ask != nil || len(volumes) > 1) { // while others are waited for
					u.logf("%v", a.err)
				}
				select {
				case <-asking.Done():
					again = false
				case <-a.closed.Done():
					again = false
				case <-time.After(o.Again):
				}
			}
			broker <- a
		}()
	}
	if o.Ask != nil {
		u.askAll(ctx, time.Now().Add(o.Timeout), attempts, o.Ask)
	}
	asked()
	for range attempts {
		<-broker
	}
	var failed []error
	for _, a := range attempts {
		switch {
		case a.err == nil || ctx.Err() == nil && a.closed.Err() != nil:
			open++
		default:
			failed = append(failed, a.err)
		}
	}
	return open, errors.Join(failed...)
}

// askAll asks for one volume after the other, as their disks appear, until all are open or nobody can be asked.
func (u *Unlocker) askAll(ctx context.Context, deadline time.Time, attempts []*attempt, ask Asker) {
	type found struct {
		attempt *attempt
		err     error
	}
	quiet := *u // what is waited for is said once
	quiet.Logf = nil
	ready := make(chan found, len(attempts))
	for _, a := range attempts {
		go func() {
			ctx, cancel := context.WithDeadline(a.closed, deadline)
			defer cancel()
			ready <- found{a, quiet.ready(ctx, a.volume)}
		}()
	}
	for range attempts {
		if f := <-ready; f.err == nil && !u.askFor(ctx, f.attempt, ask) {
			return
		}
	}
}

// ready waits for a volume's disk, and says if no passphrase could open it.
func (u *Unlocker) ready(ctx context.Context, v Volume) error {
	d, err := u.inspect(ctx, v)
	if err != nil {
		return err
	}
	defer d.close()
	if d.header == nil {
		return errors.New("the disk is blank")
	}
	return nil
}

// askFor asks until the volume is open by whatever means. It reports whether somebody can still be asked.
func (u *Unlocker) askFor(ctx context.Context, a *attempt, ask Asker) bool {
	for range maxTries {
		passphrase, err := ask(a.closed, fmt.Sprintf("passphrase or recovery key of %s", a.volume.Name))
		if a.closed.Err() != nil {
			clear(passphrase)
			return true
		}
		if err != nil {
			u.logf("nobody can be asked for a passphrase: %v", err)
			return false
		}
		err = u.Try(ctx, a.volume, passphrase)
		clear(passphrase)
		if err == nil {
			a.opened()
			u.logf("%s is open, with the passphrase", a.volume.Name)
			return true
		}
		if a.closed.Err() == nil {
			u.logf("%v", err)
		}
	}
	return true
}

// Try opens a volume with a passphrase, or the recovery key, that a person typed.
func (u *Unlocker) Try(ctx context.Context, v Volume, passphrase []byte) error {
	d, err := u.inspect(ctx, v)
	if err != nil {
		return fmt.Errorf("%s: %w", v.Name, err)
	}
	defer d.close()
	if d.header == nil {
		return fmt.Errorf("%s: the disk is blank", v.Name)
	}
	if err := u.Cryptsetup.open(ctx, d.copy, d.device, v.Name, passphrase, v.Discards); err != nil {
		return fmt.Errorf("%s: by passphrase: %w", v.Name, err)
	}
	return nil
}
