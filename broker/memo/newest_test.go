package memo

import (
	"math/big"
	"testing"
	"time"
)

// TestNewest: what was replaced does not come back, by number or date, and what a revoked signer dated ahead stops nothing.
func TestNewest(t *testing.T) {
	day := func(n int) time.Time { return time.Date(2026, 3, n, 0, 0, 0, 0, time.UTC) }
	today := day(14)
	var n Newest
	a, b := Key([]byte("a")), Key([]byte("b"))
	use := func(what string, key [32]byte, e Edition, good bool) {
		t.Helper()
		if err := n.Use(key, e, today, func(s string) bool { return s == "stolen" }); (err == nil) != good {
			t.Errorf("%s: %v", what, err)
		}
	}
	use("the first", a, Edition{Issued: day(10), Number: big.NewInt(5)}, true)
	use("the same", a, Edition{Issued: day(10), Number: big.NewInt(5)}, true)
	use("an older date", a, Edition{Issued: day(9), Number: big.NewInt(5)}, false)
	use("a lower number, a later date", a, Edition{Issued: day(11), Number: big.NewInt(4)}, false)
	use("a higher number, an older date", a, Edition{Issued: day(9), Number: big.NewInt(6)}, false)
	use("another document", b, Edition{Issued: day(1), Number: big.NewInt(1)}, true)
	use("a newer one", a, Edition{Issued: day(12), Number: big.NewInt(6)}, true)
	use("the one before", a, Edition{Issued: day(10), Number: big.NewInt(5)}, false)
	use("without a number, later", a, Edition{Issued: day(13), Signer: "stolen"}, true)
	use("whose signer is not revoked", a, Edition{Issued: day(12), Number: big.NewInt(6)}, true)

	early, standard := Edition{Issued: day(14), Until: day(20), Number: big.NewInt(18)}, Edition{Issued: day(16), Until: day(22), Number: big.NewInt(17)}
	use("early", b, early, true)
	today = day(19)
	use("standard, while the early one is in force", b, standard, false)
	today = day(20)
	use("standard, after that", b, standard, true)
}
