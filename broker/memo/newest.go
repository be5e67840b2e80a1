package memo

import (
	"fmt"
	"math/big"
	"sync"
	"time"
)

// Edition says how new a signed document is, by what its issuer signed.
type Edition struct {
	Issued time.Time
	Until  time.Time // nextUpdate; zero: for ever
	Number *big.Int  // CRL number, TCB evaluation data number; nil: it has none
	Signer string    // serial number of the signer's certificate, where that can be revoked
}

// Newest remembers the newest edition that was used of each document. What an
// issuer has replaced does not come back while this lives, whoever hands it out:
// an old list does not have the revocations made since. The zero value is ready.
//
// Only what has verified and is in force may be given to Use, so that nobody but
// the issuers can fill it, or move it ahead.
type Newest struct {
	mu   sync.Mutex
	held map[[32]byte]Edition // guarded by mu
}

// Use notes an edition of the document that key names, or says how it is older
// than one that was used before. A held edition whose signer is revoked by now, as
// revoked tells (nil: none is), counts for nothing: who stole that key could have dated it ahead of all others. Nor does one whose
// own time is over: Intel signs an early edition of a document, with a higher number, beside the standard one, and whoever
// showed it once would otherwise keep the standard one out, for months and without showing anything more.
func (n *Newest) Use(key [32]byte, e Edition, now time.Time, revoked func(signer string) bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	held, ok := n.held[key]
	if ok && (revoked != nil && revoked(held.Signer) || !held.Until.IsZero() && !now.Before(held.Until)) {
		ok = false
	}
	switch {
	case ok && e.Number != nil && held.Number != nil && e.Number.Cmp(held.Number) < 0:
		return fmt.Errorf("it has number %s, and number %s was used before", e.Number, held.Number)
	case ok && e.Issued.Before(held.Issued):
		return fmt.Errorf("it is of %s, and one of %s was used before", e.Issued.UTC().Format(time.RFC3339), held.Issued.UTC().Format(time.RFC3339))
	}
	if n.held == nil {
		n.held = map[[32]byte]Edition{}
	}
	n.held[key] = e
	return nil
}
