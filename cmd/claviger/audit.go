package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/agent"
	"github.com/claviger/claviger/broker/audit"
	"github.com/claviger/claviger/broker/pemfile"
	"github.com/claviger/claviger/broker/seal"
	"github.com/claviger/claviger/broker/strictjson"
	"github.com/claviger/claviger/internal/cli"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

func auditCommand(a *adminFlags) *cobra.Command {
	group := &cobra.Command{
		Use: "audit", Short: "Read, verify and prove the audit log",
		Long: `The audit log is a transparency log: append-only, signed checkpoints, proofs. tail
asks a running broker; verify and prove work on the log's folder alone (or a
copy of it), and on receipts, with nothing but the log's public key.`,
	}
	group.AddCommand(auditTail(a), auditVerify(a), auditProve(), auditPrune(a))
	return group
}

func auditTail(a *adminFlags) *cobra.Command {
	var limit uint32
	var dir, vkey, id string
	var follow bool
	c := &cobra.Command{
		Use: "tail", Short: "Show the newest decisions and, for denials, why", Args: noArgs,
		Example: "  claviger audit tail\n  claviger audit tail --limit 100 --output json\n  claviger audit tail --follow\n  claviger audit tail --id 7WXEZVGYW4JPV2QYKZ4KXQ3F5N     # a denial, by the id that the guest printed\n  claviger audit tail --dir /var/lib/claviger/audit",
		RunE: func(cmd *cobra.Command, _ []string) error {
			show := func(d *pb.Decision) error {
				return printEntry(cmd.OutOrStdout(), a.output, d.GetLogIndex(), []byte(d.GetEntry()))
			}
			if id != "" {
				found := false
				all := show
				show = func(d *pb.Decision) error {
					var r struct {
						ID string `json:"id"`
					}
					if err := strictjson.Unmarshal([]byte(d.GetEntry()), &r); err != nil || r.ID != id {
						return nil
					}
					found = true
					return all(d)
				}
				var err error
				if dir != "" {
					err = tailFolder(cmd.Context(), dir, vkey, math.MaxInt, show)
				} else {
					err = a.search(cmd.Context(), show, &found)
				}
				if err == nil && !found {
					err = fmt.Errorf("no record has the id %q: it may be another broker's log, or evidence that did not verify, of which not every one is recorded", id)
				}
				return err
			}
			if dir != "" {
				return tailFolder(cmd.Context(), dir, vkey, int(limit), show)
			}
			return a.tail(cmd.Context(), limit, follow, show)
		},
	}
	c.Flags().Uint32VarP(&limit, "limit", "n", 10, "how many")
	c.Flags().StringVar(&id, "id", "", "only the record with this id: a guest that was denied prints it")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "wait for more")
	c.Flags().StringVar(&dir, "dir", "", "read a log's folder in place of asking a broker")
	c.Flags().StringVar(&vkey, "key", "", "the log's verifier key or a file with it (default DIR/log.vkey)")
	return c
}

// search shows decisions, the newest first, until one is found.
func (a *adminFlags) search(ctx context.Context, show func(*pb.Decision) error, found *bool) error {
	return a.call(ctx, func(ctx context.Context, c pb.AdminClient) error {
		for before := uint64(0); ; {
			page, err := c.ListDecisions(ctx, &pb.ListDecisionsRequest{Limit: 1000, Before: before})
			if err != nil {
				return err
			}
			before = math.MaxUint64
			for _, d := range page.GetDecisions() {
				if err := show(d); err != nil || *found {
					return err
				}
				before = min(before, d.GetLogIndex())
			}
			if before == 0 || before == math.MaxUint64 {
				return nil
			}
		}
	})
}

// tail prints the newest decisions in order, and goes on if follow is set.
func (a *adminFlags) tail(ctx context.Context, limit uint32, follow bool, show func(*pb.Decision) error) error {
	next := uint64(0)
	for {
		var page []*pb.Decision
		err := a.call(ctx, func(ctx context.Context, c pb.AdminClient) error {
			var err error
			page, err = newest(ctx, c, limit, next)
			return err
		})
		if err != nil {
			return err
		}
		for _, d := range page {
			if err := show(d); err != nil {
				return err
			}
			next = d.GetLogIndex() + 1
		}
		if !follow {
			return nil
		}
		select {
		case <-time.After(500 * time.Millisecond):
			limit = 1000
		case <-ctx.Done():
			return nil
		}
	}
}

func tailFolder(ctx context.Context, dir, vkey string, limit int, show func(*pb.Decision) error) error {
	r, err := openLog(dir, vkey)
	if err != nil {
		return err
	}
	size, err := r.Size(ctx)
	if err != nil {
		return err
	}
	for e, err := range r.Entries(ctx, size-min(size, uint64(limit))) {
		if err != nil {
			return err
		}
		if err := show(&pb.Decision{LogIndex: e.Index, Entry: string(e.Data)}); err != nil {
			return err
		}
	}
	return nil
}

func printEntry(w io.Writer, output string, index uint64, raw []byte) error {
	if output == "json" {
		_, err := w.Write(fmt.Appendf(nil, "{\"index\":%d,\"entry\":%s}\n", index, raw))
		return err
	}
	var r broker.Record
	if err := strictjson.Unmarshal(raw, &r); err != nil {
		return fmt.Errorf("entry %d is not a record: %w", index, err)
	}
	sim := ""
	if r.Simulated {
		sim = "  SIMULATED"
	}
	cli.Fprintf(w, "#%d %s %s %s %s chip %s%s\n", index, r.Time.Format(time.RFC3339), strings.ToUpper(string(r.Outcome)), r.EvidenceType, r.HardwareModel, short(r.ChipID), sim)
	if r.ID != "" { // what the guest was told, and --id looks for
		cli.Fprintf(w, "    id %s\n", r.ID)
	}
	for _, m := range r.Measurements {
		name, v, _ := strings.Cut(m, "=")
		cli.Fprintf(w, "    %s %s\n", name, v)
	}
	for _, res := range r.Resources {
		word := "refused"
		if res.Allow {
			word = "allowed"
		}
		cli.Fprintf(w, "    %s %s", res.Path, word)
		if res.Policy != "" {
			cli.Fprintf(w, " by claviger.release.%s", res.Policy)
		}
		if res.Version != "" {
			cli.Fprintf(w, ", version %s", res.Version)
		}
		cli.Fprintln(w)
		var b strings.Builder
		printReasons(&b, res.Reasons)
		for line := range strings.Lines(b.String()) {
			_, _ = io.WriteString(w, "    "+line)
		}
	}
	if r.Error != "" && r.Outcome != broker.Released {
		cli.Fprintf(w, "    error %s\n", r.Error)
	}
	return nil
}

func short(s string) string {
	if len(s) > 16 {
		return s[:16] + "…"
	}
	return dash(s)
}

func openLog(dir, vkey string) (*audit.Reader, error) {
	key, err := logKey(dir, vkey)
	if err != nil {
		return nil, err
	}
	return audit.NewReader(dir, key)
}

// logKey takes a key, a file with one, or what lies beside the log.
func logKey(dir, vkey string) (string, error) {
	if vkey == "" {
		if dir == "" {
			return "", fmt.Errorf("%w: --key is missing", errUsage)
		}
		cli.Fprintln(os.Stderr, "claviger: using the key beside the log; an auditor takes it from `claviger status`, out of band, with --key")
		vkey = filepath.Join(dir, "log.vkey")
	}
	if b, err := os.ReadFile(vkey); err == nil {
		return strings.TrimSpace(string(b)), nil
	}
	return vkey, nil
}

func auditVerify(a *adminFlags) *cobra.Command {
	var dir, vkey, receipt, identity string
	c := &cobra.Command{
		Use: "verify", Short: "Verify a whole log, or a receipt",
		Long: `Verify a log's folder: every entry, every tile and the checkpoint's signature. Or
verify a receipt that a guest kept (claviger-agent get --receipt FILE --prove):
the broker's signature and the inclusion in the log.`,
		Example: `  claviger audit verify --dir /var/lib/claviger/audit --key "$LOG_KEY"
  claviger audit verify --receipt receipt.json --key "$LOG_KEY" --identity identity.pem`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case receipt != "":
				return verifyReceipt(cmd.OutOrStdout(), a.output, receipt, vkey, identity, dir)
			case dir != "":
				r, err := openLog(dir, vkey)
				if err != nil {
					return err
				}
				n, err := r.Verify(cmd.Context())
				if err != nil {
					return err
				}
				pruned, err := r.First(cmd.Context())
				if err != nil {
					return err
				}
				if a.output == "json" {
					return writeJSON(cmd.OutOrStdout(), map[string]any{"origin": r.Origin(), "entries": n, "pruned": pruned, "ok": true})
				}
				cli.Fprintf(cmd.OutOrStdout(), "%s: %d entries, all consistent with the signed checkpoint\n", r.Origin(), n)
				if pruned > 0 {
					cli.Fprintf(cmd.OutOrStdout(), "of the first %d only the hashes are here: their content was pruned\n", pruned)
				}
				return nil
			}
			return fmt.Errorf("%w: give --dir or --receipt", errUsage)
		},
	}
	f := c.Flags()
	f.StringVar(&dir, "dir", "", "the log's folder")
	f.StringVar(&vkey, "key", "", "the log's verifier key, or a file with it")
	f.StringVar(&receipt, "receipt", "", "a guest's receipt")
	f.StringVar(&identity, "identity", "", "the broker's identity, PEM (required with --receipt)")
	return c
}

func verifyReceipt(w io.Writer, output, file, vkey, identityFile, dir string) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("receipt: %w", err)
	}
	var r agent.Receipt
	if err := strictjson.Unmarshal(raw, &r); err != nil {
		return fmt.Errorf("receipt: %w", err)
	}
	if identityFile == "" {
		return fmt.Errorf("%w: --identity is missing: a receipt is worth what its signer is", errUsage)
	}
	b, err := os.ReadFile(identityFile)
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	key, err := pemfile.One(b, "PUBLIC KEY")
	if err != nil {
		return fmt.Errorf("identity: %s: %w", identityFile, err)
	}
	payload, err := seal.Verify(key, seal.TypeReceipt, r.Promise)
	if err != nil {
		return fmt.Errorf("receipt: %w", err)
	}
	var p broker.Promise
	if err := strictjson.Unmarshal(payload, &p); err != nil {
		return fmt.Errorf("receipt: %w", err)
	}
	id := sha256.Sum256(key)
	if p.Issuer != base64.RawURLEncoding.EncodeToString(id[:]) {
		return fmt.Errorf("receipt: issued by another broker than %s", identityFile)
	}
	leaf, err := seal.Decode(p.LeafHash)
	if err != nil {
		return fmt.Errorf("receipt: leaf hash: %w", err)
	}
	result := map[string]any{"signature": "ok", "record": p.ID, "log": p.Log, "index": p.Index, "issued_at": time.Unix(p.IssuedAt, 0).UTC()}
	if len(r.Checkpoint) > 0 {
		key, err := logKey(dir, vkey)
		if err != nil {
			return err
		}
		// The leaf and index are those that the broker signed, not those beside the proof.
		size, err := audit.VerifyProof(audit.Proof{Index: p.Index, LeafHash: leaf, Path: r.Path, Checkpoint: r.Checkpoint}, key)
		if err != nil {
			return fmt.Errorf("receipt: %w", err)
		}
		result["inclusion"], result["log_size"] = "ok", size
	} else {
		result["inclusion"] = "no proof in the receipt (claviger-agent get --receipt FILE --prove)"
	}
	if output == "json" {
		return writeJSON(w, result)
	}
	cli.Fprintf(w, "receipt: signed by the pinned broker, record %s at index %d of log %s\n", p.ID, p.Index, p.Log)
	if result["inclusion"] == "ok" {
		cli.Fprintf(w, "inclusion: proven in a signed checkpoint of %d entries\n", result["log_size"])
	} else {
		cli.Fprintf(w, "inclusion: %s\n", result["inclusion"])
	}
	return nil
}

func auditProve() *cobra.Command {
	var dir, vkey string
	c := &cobra.Command{
		Use: "prove INDEX --dir DIR", Short: "Make an inclusion proof for an entry, as JSON", Args: exactArgs("INDEX"),
		Example: "  claviger audit prove 17 --dir /var/lib/claviger/audit > proof.json",
		RunE: func(cmd *cobra.Command, args []string) error {
			index, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil {
				return fmt.Errorf("%w: INDEX %q is not a number", errUsage, args[0])
			}
			if dir == "" {
				return fmt.Errorf("%w: --dir is missing", errUsage)
			}
			r, err := openLog(dir, vkey)
			if err != nil {
				return err
			}
			p, err := r.Prove(cmd.Context(), index)
			if err != nil {
				return err
			}
			if _, err := audit.VerifyProof(p, r.VerifierKey()); err != nil {
				return err
			}
			return writeJSON(cmd.OutOrStdout(), p)
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "the log's folder (required)")
	c.Flags().StringVar(&vkey, "key", "", "the log's verifier key, or a file with it")
	return c
}

func auditPrune(a *adminFlags) *cobra.Command {
	var dir, vkey, before, archive string
	var dry bool
	c := &cobra.Command{
		Use: "prune --dir DIR --before TIME", Short: "Remove the content of old entries; proofs stay valid", Args: noArgs,
		Long: `Remove the content of entries that are older than a time, in whole bundles of 256.
Their hashes stay, so checkpoints, inclusion proofs and receipts verify as before.
With --archive the bundles are moved to a folder, from where they can be put back.
It may run beside the broker, which does the same by itself with audit.keep.`,
		Example: `  claviger audit prune --dir /var/lib/claviger/audit --before 2026-06-01T00:00:00Z --dry-run
  claviger audit prune --dir /var/lib/claviger/audit --before 720h --archive /mnt/archive/claviger`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" || before == "" {
				return fmt.Errorf("%w: --dir and --before are required", errUsage)
			}
			t, err := time.Parse(time.RFC3339, before)
			if err != nil {
				d, derr := time.ParseDuration(before)
				if derr != nil || d <= 0 {
					return fmt.Errorf("%w: --before: %q is neither a time as 2026-06-01T00:00:00Z nor an age as 720h", errUsage, before)
				}
				t = time.Now().Add(-d)
			}
			r, err := openLog(dir, vkey)
			if err != nil {
				return err
			}
			p, err := r.Prune(cmd.Context(), t, archive, dry)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return writeJSON(cmd.OutOrStdout(), p)
			}
			verb := "removed"
			switch {
			case dry:
				verb = "would remove"
			case archive != "":
				verb = "moved"
			}
			cli.Fprintf(cmd.OutOrStdout(), "%s the content of %d entries, %d bytes; the first one kept is %d\n", verb, p.Entries, p.Bytes, p.First)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&dir, "dir", "", "the log's folder (required)")
	f.StringVar(&vkey, "key", "", "the log's verifier key, or a file with it")
	f.StringVar(&before, "before", "", "a time, RFC 3339, or an age as 720h (required)")
	f.StringVar(&archive, "archive", "", "folder to move the entries to, in place of deleting them")
	f.BoolVar(&dry, "dry-run", false, "only say what would go")
	return c
}
