package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/examples"
	"github.com/claviger/claviger/internal/cli"
	"github.com/claviger/claviger/policy"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

func policyCommand(a *adminFlags) *cobra.Command {
	group := &cobra.Command{Use: "policy", Short: "Write, test, build and roll out release policies"}
	group.AddCommand(policyInit(), policyTest(a), policyCheck(a), policyReads(a), policyEval(a), policyBuild(), policyStatus(a), policyActivate(a))
	return group
}

func policyInit() *cobra.Command {
	return &cobra.Command{
		Use: "init FOLDER", Short: "Copy the example policies with their tests, to start from", Args: exactArgs("FOLDER"),
		Example: "  claviger policy init policies && claviger policy test policies",
		RunE: func(cmd *cobra.Command, args []string) error {
			if entries, err := os.ReadDir(args[0]); err == nil && len(entries) > 0 {
				return fmt.Errorf("%s is not empty; nothing was written", args[0])
			}
			sub, err := fs.Sub(examples.Policies, "policies")
			if err != nil {
				return err
			}
			if err := os.CopyFS(args[0], sub); err != nil {
				return fmt.Errorf("copy examples: %w", err)
			}
			cli.Fprintf(cmd.OutOrStdout(), "wrote the example policies to %s; try: claviger policy test %[1]s\n", args[0])
			return nil
		},
	}
}

func policyTest(a *adminFlags) *cobra.Command {
	var cfg policy.TestConfig
	var verbose bool
	var minimum float64
	c := &cobra.Command{
		Use: "test PATH…", Short: "Run the tests of policies (test_… rules in *_test.rego)",
		Example: "  claviger policy test policies --coverage\n  claviger policy test policies --run disks --verbose",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg.Paths = args
			r, err := policy.Test(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if a.output == "json" {
				err = writeJSON(cmd.OutOrStdout(), r)
			} else {
				err = r.Write(cmd.OutOrStdout(), verbose)
			}
			if err != nil {
				return err
			}
			if !r.OK() {
				return errFailed
			}
			if cfg.Coverage && r.Coverage < minimum {
				return fmt.Errorf("coverage is %.1f %%, want %.1f %%", r.Coverage, minimum)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.Fixtures, "fixtures", "", "folder with claims documents, as data.fixtures.NAME")
	f.BoolVar(&cfg.Coverage, "coverage", false, "say which lines no test reached")
	f.Float64Var(&minimum, "coverage-min", 0, "fail below this many percent")
	f.StringVar(&cfg.Run, "run", "", "only tests whose name matches this regular expression")
	f.DurationVar(&cfg.Timeout, "timeout", 5*time.Second, "for each test")
	f.BoolVarP(&verbose, "verbose", "v", false, "name the tests that pass, too")
	return c
}

func policyCheck(a *adminFlags) *cobra.Command {
	return &cobra.Command{
		Use: "check PATH…", Short: "Compile policies strictly and look for dangerous ones", Args: cobra.MinimumNArgs(1),
		Example: "  claviger policy check policies",
		RunE: func(cmd *cobra.Command, args []string) error {
			problems, err := policy.Check(args)
			if err != nil {
				return err
			}
			if a.output == "json" {
				if err := writeJSON(cmd.OutOrStdout(), problems); err != nil {
					return err
				}
			} else {
				for _, p := range problems {
					cli.Fprintf(cmd.OutOrStdout(), "%s\n", p)
				}
			}
			if len(problems) > 0 {
				return errFailed
			}
			if a.output != "json" {
				cli.Fprintln(cmd.OutOrStdout(), "no problems")
			}
			return nil
		},
	}
}

func policyReads(a *adminFlags) *cobra.Command {
	return &cobra.Command{
		Use: "reads PATH…", Short: "List what policies read of the claims and of the request", Args: cobra.MinimumNArgs(1),
		Long: `List what each policy reads of its input, itself or by the library: all that its
decisions rest on, besides the bundle and the reference values. It is for reviewers:
a policy is shown the whole input.`,
		Example: "  claviger policy reads policies\n  claviger policy reads policies --output json",
		RunE: func(cmd *cobra.Command, args []string) error {
			readings, err := policy.Reads(args)
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if a.output == "json" {
				return writeJSON(w, readings)
			}
			for _, r := range readings {
				cli.Fprintf(w, "%s\n", r.Policy)
				for _, path := range r.Input {
					if path == "." {
						path = "(all of the input)"
					}
					cli.Fprintf(w, "  %s\n", path)
				}
			}
			return nil
		},
	}
}

func policyEval(a *adminFlags) *cobra.Command {
	var cfg policy.EvalConfig
	var input, references, at string
	c := &cobra.Command{
		Use: "eval FOLDER POLICY --input FILE", Short: "Decide once, by hand, and explain",
		Long: "Decide once. The input is a claims document as `claviger evidence show --output json` prints it, or a whole policy input.",
		Example: `  claviger evidence show report.bin --output json > claims.json
  claviger policy eval policies disks --input claims.json --references sets.yaml --explain`,
		Args: exactArgs("FOLDER", "POLICY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg.Dir, cfg.Policy, cfg.Now = args[0], args[1], time.Now()
			var err error
			if cfg.Input, err = os.ReadFile(input); err != nil {
				return fmt.Errorf("input: %w", err)
			}
			if references != "" {
				if err := readYAML(references, &cfg.References); err != nil {
					return fmt.Errorf("references: %w", err)
				}
			}
			if at != "" {
				if cfg.Now, err = time.Parse(time.RFC3339, at); err != nil {
					return fmt.Errorf("%w: --at: %w", errUsage, err)
				}
			}
			r, err := policy.Eval(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if a.output == "json" {
				err = writeJSON(cmd.OutOrStdout(), r)
			} else {
				err = printDecision(cmd.OutOrStdout(), r)
			}
			if err == nil && !r.Decision.Allow {
				err = errFailed
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&input, "input", "", "claims or whole input, JSON (required)")
	f.StringVar(&references, "references", "", "reference-value sets, YAML or JSON list")
	f.StringVar(&at, "at", "", "time of the decision, RFC 3339 (default now)")
	f.BoolVar(&cfg.Explain, "explain", false, "show which expressions failed")
	return c
}

func printDecision(w io.Writer, r policy.EvalResult) error {
	word := "DENY"
	if r.Decision.Allow {
		word = "ALLOW"
	}
	cli.Fprintf(w, "%s by %s (%s)\n", word, r.Decision.Package, r.Decision.PolicyDigest)
	printReasons(w, r.Decision.Reasons)
	if r.Explanation != "" {
		_, _ = io.WriteString(w, "\n"+r.Explanation)
	}
	return nil
}

func printReasons(w io.Writer, reasons []broker.DecisionReason) {
	for _, x := range reasons {
		cli.Fprintf(w, "  %s: %s\n", x.Rule, x.Message)
		for _, line := range [][2]string{{"claim", x.Claim}, {"got", x.Got}, {"nearest", x.Nearest}} {
			if line[1] != "" {
				cli.Fprintf(w, "      %-8s %s\n", line[0], line[1])
			}
		}
	}
}

func policyBuild() *cobra.Command {
	var out, revision, keyFile, keyID string
	c := &cobra.Command{
		Use: "build FOLDER", Short: "Pack a folder into a bundle, signed if a key is given",
		Example: "  claviger policy build policies --out bundle.tar.gz --revision \"$(git rev-parse HEAD)\" --key signing.pem --key-id release-2026",
		Args:    exactArgs("FOLDER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var key *policy.SigningKey
			if keyFile != "" {
				b, err := os.ReadFile(keyFile)
				if err != nil {
					return fmt.Errorf("key: %w", err)
				}
				key = &policy.SigningKey{PEM: string(b), Algorithm: "ES256", KeyID: keyID}
			}
			f, err := os.CreateTemp(filepath.Dir(out), ".bundle-*")
			if err != nil {
				return err
			}
			defer os.Remove(f.Name())
			digest, err := policy.Build(args[0], f, revision, key)
			if err != nil {
				f.Close()
				return err
			}
			if err := f.Close(); err != nil {
				return err
			}
			if err := os.Rename(f.Name(), out); err != nil {
				return err
			}
			cli.Fprintf(cmd.OutOrStdout(), "%s %s\n", out, digest)
			return nil
		},
	}
	f := c.Flags()
	f.StringVarP(&out, "out", "o", "bundle.tar.gz", "file to write")
	f.StringVar(&revision, "revision", "", "goes into the manifest")
	f.StringVar(&keyFile, "key", "", "ECDSA P-256 private key, PEM")
	f.StringVar(&keyID, "key-id", "default", "the key's name in the broker's policy.verification_keys")
	return c
}

func policyStatus(a *adminFlags) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show which bundle is in force, and why a newer one is not", Example: "  claviger policy status", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				p, err := c.GetPolicy(ctx, &pb.GetPolicyRequest{})
				if err != nil {
					return err
				}
				return a.print(cmd.OutOrStdout(), p, "", func(row func(...any)) {
					row("in force", cmp.Or(p.GetDigest(), "none: nothing is released"))
					row("revision", dash(p.GetRevision()))
					row("packages", strings.Join(p.GetPackages(), " "))
					row("loaded", when(p.GetLoadedAt()))
					row("pinned", dash(p.GetPinned()))
					for _, d := range p.GetCandidates() {
						row("candidate", d)
					}
					what := "REFUSED"
					if p.GetDigest() == "" {
						what = "BLOCKED"
					}
					for line := range strings.Lines(p.GetError()) { // several lines, with the place in the policy
						row(what, strings.TrimRight(strings.ReplaceAll(line, "\t", "  "), "\n"))
						what = ""
					}
				})
			})
		},
	}
}

func policyActivate(a *adminFlags) *cobra.Command {
	return &cobra.Command{
		Use: "activate DIGEST|newest", Short: "Pin a loaded bundle on every broker; \"newest\" takes the pin away", Args: exactArgs("DIGEST"),
		Example: "  claviger policy activate sha256:…\n  claviger policy activate newest",
		RunE: func(cmd *cobra.Command, args []string) error {
			digest := args[0]
			if digest == "newest" {
				digest = ""
			}
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				_, err := c.ActivatePolicy(ctx, &pb.ActivatePolicyRequest{Digest: digest})
				return err
			})
		},
	}
}

func writeJSON(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}
