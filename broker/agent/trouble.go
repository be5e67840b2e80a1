package agent

import (
	"strings"
	"sync"
	"time"
)

// retold is after how long trouble that lasts is told again.
const retold = 10 * time.Minute

// troubles tells what is wrong once per change: a log is read by people, and an
// outage makes the same error again and again.
type troubles struct {
	tell func(error)

	mu   sync.Mutex
	seen map[string]time.Time // guarded by mu; by text, since nothing was wrong
}

// about says what is wrong; nil: nothing is any more.
func (t *troubles) about(err error) {
	if t.tell == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		if len(t.seen) > 0 {
			t.seen = nil
			t.tell(nil)
		}
		return
	}
	// How long something takes, or is off, does not make it another trouble.
	key := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, err.Error())
	if at, ok := t.seen[key]; ok && time.Since(at) < retold {
		return
	}
	if t.seen == nil || len(t.seen) >= 32 {
		t.seen = map[string]time.Time{}
	}
	t.seen[key] = time.Now()
	t.tell(err)
}
