package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/pemfile"
	"github.com/claviger/claviger/internal/cli"
	"github.com/claviger/claviger/internal/strictyaml"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// adminFlags say how to reach a broker's operators' listener.
type adminFlags struct {
	address, ca, cert, key string
	output                 string
}

func (a *adminFlags) register(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVar(&a.address, "admin", os.Getenv("CLAVIGER_ADMIN"), "operators' address of the broker (CLAVIGER_ADMIN)")
	f.StringVar(&a.ca, "admin-ca", os.Getenv("CLAVIGER_ADMIN_CA"), "PEM roots of its certificate (CLAVIGER_ADMIN_CA)")
	f.StringVar(&a.cert, "admin-cert", os.Getenv("CLAVIGER_ADMIN_CERT"), "your client certificate (CLAVIGER_ADMIN_CERT)")
	f.StringVar(&a.key, "admin-key", os.Getenv("CLAVIGER_ADMIN_KEY"), "its key (CLAVIGER_ADMIN_KEY)")
	f.StringVar(&a.output, "output", "table", "table or json")
}

// call runs f against the broker.
func (a *adminFlags) call(ctx context.Context, f func(context.Context, pb.AdminClient) error) error {
	if a.address == "" || a.cert == "" || a.key == "" {
		return fmt.Errorf("%w: set CLAVIGER_ADMIN, CLAVIGER_ADMIN_CERT and CLAVIGER_ADMIN_KEY (or --admin, --admin-cert, --admin-key)", errUsage)
	}
	pair, err := tls.LoadX509KeyPair(a.cert, a.key)
	if err != nil {
		return fmt.Errorf("admin-cert: %w", err)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}}
	if a.ca != "" {
		b, err := os.ReadFile(a.ca)
		if err != nil {
			return fmt.Errorf("admin-ca: %w", err)
		}
		if cfg.RootCAs, err = pemfile.Pool(b); err != nil {
			return fmt.Errorf("admin-ca: %s: %w", a.ca, err)
		}
	}
	conn, err := grpc.NewClient(a.address, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return f(ctx, pb.NewAdminClient(conn))
}

// print writes a message as JSON, or rows as a table.
func (a *adminFlags) print(w io.Writer, m proto.Message, header string, rows func(row func(cells ...any))) error {
	switch a.output {
	case "json":
		b, err := protojson.MarshalOptions{EmitUnpopulated: true, UseProtoNames: true}.Marshal(m)
		if err != nil {
			return err
		}
		var out bytes.Buffer // protojson varies its white space on purpose
		if err := json.Indent(&out, b, "", "  "); err != nil {
			return err
		}
		_, err = io.WriteString(w, out.String()+"\n")
		return err
	case "table":
		return table(w, header, rows)
	}
	return fmt.Errorf("%w: --output is %q, want table or json", errUsage, a.output)
}

func table(w io.Writer, header string, rows func(row func(cells ...any))) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	if header != "" {
		_, _ = io.WriteString(tw, strings.ReplaceAll(header, " ", "\t")+"\n")
	}
	rows(func(cells ...any) {
		s := make([]string, len(cells))
		for i, c := range cells {
			s[i] = cli.Text(fmt.Sprint(c))
		}
		_, _ = io.WriteString(tw, strings.Join(s, "\t")+"\n")
	})
	return tw.Flush()
}

func when(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return t.AsTime().Format(time.RFC3339)
}

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%w: unexpected argument %q", errUsage, args[0])
	}
	return nil
}

func exactArgs(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return fmt.Errorf("%w: want %s", errUsage, strings.Join(names, " "))
		}
		return nil
	}
}

func storeSize(z *pb.StoreSize) string {
	text := fmt.Sprintf("%d MiB, %d in use", z.GetBytes()>>20, z.GetBytesInUse()>>20)
	if z.GetQuota() > 0 {
		text += fmt.Sprintf(", of at most %d", z.GetQuota()>>20)
	}
	return text
}

func statusCommand(a *adminFlags) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show what a broker is and has in force", Example: "  claviger status --output json", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				s, err := c.GetStatus(ctx, &pb.GetStatusRequest{})
				if err != nil {
					return err
				}
				return a.print(cmd.OutOrStdout(), s, "", func(row func(...any)) {
					row("broker id", hex.EncodeToString(s.GetBrokerId()))
					row("identity", base64.StdEncoding.EncodeToString(s.GetIdentity()))
					row("version", s.GetVersion())
					row("started", when(s.GetStartedAt()))
					if s.GetSimulated() {
						row("hardware", "SIMULATED devices are accepted (claviger dev)")
					} else {
						row("hardware", "real only")
					}
					row("policy", s.GetPolicyDigest())
					row("store", storeSize(s.GetStore()))
					for _, p := range s.GetProblems() {
						row("PROBLEM", fmt.Sprintf("%s %s: %s; stops %s", p.GetKind(), p.GetName(), p.GetReason(), p.GetStops()))
					}
					row("audit log", s.GetLogOrigin())
					row("  entries", s.GetLogSize())
					row("  key", s.GetLogVerifierKey())
				})
			})
		},
	}
}

func referenceCommand(a *adminFlags) *cobra.Command {
	group := &cobra.Command{Use: "reference", Short: "Compute, add, list, set and delete reference values, and say who uses them"}
	group.AddCommand(referenceComputeCommand(a), referenceAddCommand(a), referenceSetCommand(a), &cobra.Command{
		Use: "list", Short: "List reference-value sets", Example: "  claviger reference list --output json", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				r, err := whole(func(token string) (*pb.ListReferenceSetsResponse, error) {
					return c.ListReferenceSets(ctx, &pb.ListReferenceSetsRequest{PageToken: token})
				})
				if err != nil {
					return err
				}
				return a.print(cmd.OutOrStdout(), r, "NAME TYPE STATE FROM UNTIL CLAIM VALUE SOURCE ADDED-BY POLICIES RESOURCES", func(row func(...any)) {
					for _, s := range r.GetSets() {
						var claims []string
						for claim := range s.GetValues() {
							claims = append(claims, claim)
						}
						sort.Strings(claims)
						for _, claim := range claims {
							for _, v := range s.GetValues()[claim].GetValues() {
								row(s.GetName(), s.GetType(), s.GetState(), when(s.GetNotBefore()), when(s.GetNotAfter()), claim, v, dash(s.GetSource()), s.GetAddedBy(), dash(strings.Join(s.GetOwner().GetPolicies(), ",")), dash(strings.Join(s.GetOwner().GetResources(), ",")))
							}
						}
					}
				})
			})
		},
	}, &cobra.Command{
		Use: "uses NAME", Short: "List the policies that see a reference-value set, and what they release",
		Long: `List the policies that see a reference-value set, why they do, and the patterns of the
catalog that they release by it. A policy with none releases nothing by it now.`,
		Example: "  claviger reference uses fleet-2026-10", Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				r, err := c.ListReferenceUses(ctx, &pb.ListReferenceUsesRequest{Name: args[0]})
				if err != nil {
					return err
				}
				return a.print(cmd.OutOrStdout(), r, "POLICY WHY PATTERN", func(row func(...any)) {
					for _, u := range r.GetUses() {
						if len(u.GetPatterns()) == 0 {
							row(u.GetPolicy(), u.GetWhy(), "-")
						}
						for _, p := range u.GetPatterns() {
							row(u.GetPolicy(), u.GetWhy(), p)
						}
					}
				})
			})
		},
	}, &cobra.Command{
		Use: "delete NAME", Short: "Delete a reference-value set", Example: "  claviger reference delete fleet-2026-10", Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				_, err := c.DeleteReferenceSet(ctx, &pb.DeleteReferenceSetRequest{Name: args[0]})
				return err
			})
		},
	})
	return group
}

func referenceSetCommand(a *adminFlags) *cobra.Command {
	var state, typ, source, comment, notBefore, notAfter string
	var values []string
	var owner ownerFlags
	c := &cobra.Command{
		Use: "set NAME [--type TYPE --policy POLICY --value CLAIM=VALUE…]", Short: "Make a reference-value set, or change one",
		Long: `With --value: make a set, or replace all values of one that exists. Without: change the
state, the validity, the owner or the provenance of a set that exists; its values stay.
A new set needs --policy: only the policies that it names see it, and those that ask
for the sets of one of them.`,
		Example: `  claviger reference set fleet-2026-11 --policy disks --type sev-snp --state canary --value measurement=5b3c…  --source build-4711
  claviger reference set pay-7 --policy workload --resource workloads/payments/{key} --type sev-snp --value host_data=8d1f…
  claviger reference set fleet-2026-11 --state active                            # the values stay
  claviger reference set fleet-2026-10 --state retiring --not-after 2026-12-31T00:00:00Z`,
		Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			given := cmd.Flags().Changed
			before, err := flagTime("--not-before", notBefore)
			if err != nil {
				return err
			}
			after, err := flagTime("--not-after", notAfter)
			if err != nil {
				return err
			}
			if len(values) == 0 {
				switch {
				case given("type"):
					return fmt.Errorf("%w: --type needs --value: the type of a set belongs to its values", errUsage)
				case owner.message() == nil && !given("state") && !given("source") && !given("comment") && !given("not-before") && !given("not-after"):
					return fmt.Errorf("%w: nothing to set: give --value, or --state, --not-before, --not-after, --policy, --source or --comment", errUsage)
				}
				r := &pb.ChangeReferenceSetRequest{Name: args[0], NotBefore: before, NotAfter: after, Owner: owner.message()}
				for name, f := range map[string]struct {
					value *string
					to    **string
				}{"state": {&state, &r.State}, "source": {&source, &r.Source}, "comment": {&comment, &r.Comment}} {
					if given(name) {
						*f.to = f.value
					}
				}
				return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
					_, err := c.ChangeReferenceSet(ctx, r)
					return err
				})
			}
			if typ == "" {
				return fmt.Errorf("%w: --type is missing: sev-snp, tdx, tpm, …", errUsage)
			}
			m := &pb.ReferenceSet{
				Name: args[0], Type: typ, State: cmp.Or(state, "active"), Source: source, Comment: comment, NotBefore: before, NotAfter: after,
				Values: map[string]*pb.ReferenceValues{}, Owner: owner.message(),
			}
			for _, v := range values {
				claim, value, ok := strings.Cut(v, "=")
				if !ok || claim == "" || value == "" {
					return fmt.Errorf("%w: --value %q is not CLAIM=VALUE", errUsage, v)
				}
				if m.Values[claim] == nil {
					m.Values[claim] = &pb.ReferenceValues{}
				}
				m.Values[claim].Values = append(m.Values[claim].Values, value)
			}
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				_, err := c.PutReferenceSet(ctx, &pb.PutReferenceSetRequest{Set: m})
				return err
			})
		},
	}
	f := c.Flags()
	owner.add(c)
	f.StringVar(&typ, "type", "", "evidence type: sev-snp, tdx, …")
	f.StringVar(&state, "state", "", "canary, active, retiring or retired (default of a new set: active)")
	f.StringArrayVar(&values, "value", nil, "CLAIM=VALUE, may be repeated; replaces all values of a set that exists")
	f.StringVar(&notBefore, "not-before", "", "when the set begins to count, RFC 3339")
	f.StringVar(&notAfter, "not-after", "", "when the set ceases to count, RFC 3339")
	f.StringVar(&source, "source", "", "what produced the values: a build, a file")
	f.StringVar(&comment, "comment", "", "free text")
	return c
}

// ownerFlags say what a set is for.
type ownerFlags struct{ policies, resources []string }

func (o *ownerFlags) add(c *cobra.Command) {
	c.Flags().StringSliceVar(&o.policies, "policy", nil, `policies that see the set, * for every one`)
	c.Flags().StringSliceVar(&o.resources, "resource", nil, "patterns of the resources that it counts for, as in the catalog (default: all that the policies release)")
}

// message is nil if no flag was given.
func (o *ownerFlags) message() *pb.ReferenceOwner {
	if len(o.policies) == 0 && len(o.resources) == 0 {
		return nil
	}
	return &pb.ReferenceOwner{Policies: o.policies, Resources: o.resources}
}

// flagTime reads a time of a flag; nil if it was not given.
func flagTime(flag, value string) (*timestamppb.Timestamp, error) {
	if value == "" {
		return nil, nil
	}
	t, err := time.Parse(time.RFC3339, value)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %q is not a time as 2026-12-31T00:00:00Z", errUsage, flag, value)
	}
	return timestamppb.New(t), nil
}

func referenceAddCommand(a *adminFlags) *cobra.Command {
	var file, state string
	var owner ownerFlags
	c := &cobra.Command{
		Use: "add NAME --file FILE --policy POLICY", Short: "Set a reference-value set from a file, as claviger reference compute writes it",
		Long: `Set a reference-value set from a file in YAML or JSON, as claviger reference compute
writes it. Who adds it, and when, is the broker's to write down. A set needs an owner: the
policies that see it, from --policy or from the file's policies.`,
		Example: `  claviger reference add release-7 --policy measured_boot --file release.yaml
  claviger reference compute tpm --uki linux.efi | claviger reference add release-7 --policy measured_boot --file - --state canary`,
		Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := readReferenceSet(cmd.InOrStdin(), file)
			if err != nil {
				return err
			}
			if m.Name != "" && m.Name != args[0] {
				return fmt.Errorf("%w: the set in %s is named %q", errUsage, file, m.Name)
			}
			m.Name = args[0]
			if state != "" {
				m.State = state
			}
			if o := owner.message(); o != nil { // each for itself: a policy of the command's does not make the file's set one for all resources
				if len(o.Policies) == 0 {
					o.Policies = m.GetOwner().GetPolicies()
				}
				if len(o.Resources) == 0 {
					o.Resources = m.GetOwner().GetResources()
				}
				m.Owner = o
			}
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				_, err := c.PutReferenceSet(ctx, &pb.PutReferenceSetRequest{Set: m})
				return err
			})
		},
	}
	owner.add(c)
	c.Flags().StringVar(&file, "file", "", "file to read, - for standard input")
	c.Flags().StringVar(&state, "state", "", "canary, active, retiring or retired (default: as the file says)")
	return c
}

// readReferenceSet reads a broker.ReferenceSet.
func readReferenceSet(stdin io.Reader, file string) (*pb.ReferenceSet, error) {
	if file == "" {
		return nil, fmt.Errorf("%w: --file is missing", errUsage)
	}
	in := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var s broker.ReferenceSet
	if err := strictyaml.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if s.Type == "" || len(s.Values) == 0 {
		return nil, fmt.Errorf("%s: no type, or no values: not a reference set", file)
	}
	m := &pb.ReferenceSet{
		Name: s.Name, Type: string(s.Type), State: string(s.State), Source: s.Provenance.Source, Comment: s.Provenance.Comment, Values: map[string]*pb.ReferenceValues{},
	}
	if len(s.Policies) > 0 || len(s.Resources) > 0 {
		m.Owner = &pb.ReferenceOwner{Policies: s.Policies, Resources: s.Resources}
	}
	if !s.NotBefore.IsZero() {
		m.NotBefore = timestamppb.New(s.NotBefore)
	}
	if !s.NotAfter.IsZero() {
		m.NotAfter = timestamppb.New(s.NotAfter)
	}
	for claim, list := range s.Values {
		if len(list) == 0 {
			return nil, fmt.Errorf("%s: claim %s has no values", file, claim)
		}
		v := &pb.ReferenceValues{}
		for _, value := range list {
			v.Values = append(v.Values, strings.ToLower(value))
		}
		m.Values[claim] = v
	}
	return m, nil
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func catalogCommand(a *adminFlags) *cobra.Command {
	group := &cobra.Command{Use: "catalog", Short: "List, set and delete catalog entries"}
	var e pb.CatalogEntry
	var ttl, grace time.Duration
	set := &cobra.Command{
		Use: "set PATTERN --source SOURCE --key KEY --policy POLICY", Short: "Set a catalog entry in the shared state",
		Example: `  claviger catalog set 'disks/{vm}' --source local --key 'disks/{vm}' --policy disks --create-bytes 32
  claviger catalog set db/orders --source vault --key db/orders --field password --policy workload --grace 10m
  claviger catalog set db/reports --source vault --kind database --key reports-ro --policy workload
  claviger catalog set 'certs/{vm}' --source vault --kind pki --key vm --option 'common_name={vm}' --policy disks`,
		Args: exactArgs("PATTERN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			e.Pattern, e.TtlSeconds, e.GraceSeconds = args[0], int64(ttl/time.Second), int64(grace/time.Second)
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				_, err := c.PutCatalogEntry(ctx, &pb.PutCatalogEntryRequest{Entry: &e})
				return err
			})
		},
	}
	f := set.Flags()
	f.StringVar(&e.Source, "source", "local", "local, or a vault of the broker's configuration")
	f.StringVar(&e.Key, "key", "", "the secret's path in the source")
	f.StringVar(&e.Kind, "kind", "", "what to get: kv, database, database_static, pki, transit_decrypt, transit_datakey, transit_export, wrapped, login, ear (default kv)")
	f.StringVar(&e.Mount, "mount", "", "path of the engine in Vault (default: the usual one of the kind)")
	f.StringVar(&e.Field, "field", "", "field of a Vault KV secret, * for the whole (default value)")
	f.Uint32Var(&e.PinVersion, "pin-version", 0, "the only version of a KV secret that is given out")
	f.StringToStringVar(&e.Options, "option", nil, "setting of the kind, NAME=VALUE; repeat")
	f.DurationVar(&grace, "grace", 0, "how long the version before the newest may still be used after a rotation")
	f.BoolVar(&e.Rotatable, "rotatable", false, "let \"revoke --rotate\" make a new random value; not for disk keys")
	f.StringVar(&e.Priority, "priority", "", "boot: for what machines cannot boot without, which goes first in the queue")
	f.BoolVar(&e.Rekey, "rekey", false, "let the workload have the next version made, for \"claviger-agent rekey\"")
	f.StringVar(&e.Policy, "policy", "", "package under claviger.release")
	f.Uint32Var(&e.CreateBytes, "create-bytes", 0, "make a random secret of that length where there is none")
	f.DurationVar(&ttl, "ttl", 0, "lifetime of a wrapped secret")
	group.AddCommand(set, &cobra.Command{
		Use: "list", Short: "List the catalog in force", Example: "  claviger catalog list", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				r, err := whole(func(token string) (*pb.ListCatalogResponse, error) {
					return c.ListCatalog(ctx, &pb.ListCatalogRequest{PageToken: token})
				})
				if err != nil {
					return err
				}
				return a.print(cmd.OutOrStdout(), r, "PATTERN SOURCE KIND KEY FIELD POLICY CREATE GRACE ROTATABLE", func(row func(...any)) {
					for _, e := range r.GetEntries() {
						row(e.GetPattern(), e.GetSource(), cmp.Or(e.GetKind(), "kv"), e.GetKey(), dash(e.GetField()), e.GetPolicy(), e.GetCreateBytes(),
							time.Duration(e.GetGraceSeconds())*time.Second, e.GetRotatable())
					}
				})
			})
		},
	}, &cobra.Command{
		Use: "delete PATTERN", Short: "Delete a catalog entry", Example: "  claviger catalog delete 'disks/{vm}'", Args: exactArgs("PATTERN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				_, err := c.DeleteCatalogEntry(ctx, &pb.DeleteCatalogEntryRequest{Pattern: args[0]})
				return err
			})
		},
	})
	return group
}

func secretCommand(a *adminFlags) *cobra.Command {
	group := &cobra.Command{Use: "secret", Short: "Write, list and delete secrets of the embedded store; have a lost key made anew"}
	var file string
	var expected int64
	put := &cobra.Command{
		Use: "put KEY", Short: "Write a new version, from a file or standard input",
		Long:    "Write a new version of a secret. The value is read from a file or standard input, as it is: a trailing newline stays.",
		Example: "  printf %s \"$PASSWORD\" | claviger secret put db/orders\n  claviger secret put db/orders --file password.txt --expect-version 3",
		Args:    exactArgs("KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var in io.Reader = cmd.InOrStdin()
			if file != "-" {
				f, err := os.Open(file)
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			value, err := io.ReadAll(io.LimitReader(in, 64<<10+1))
			if err != nil {
				return fmt.Errorf("read value: %w", err)
			}
			defer clear(value)
			r := &pb.PutSecretRequest{Key: args[0], Value: value}
			if expected >= 0 {
				v := uint64(expected)
				r.ExpectedVersion = &v
			}
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				out, err := c.PutSecret(ctx, r)
				if err != nil {
					return err
				}
				cli.Fprintf(cmd.OutOrStdout(), "%s version %d\n", args[0], out.GetVersion())
				return nil
			})
		},
	}
	put.Flags().StringVar(&file, "file", "-", "file to read, - for standard input")
	put.Flags().Int64Var(&expected, "expect-version", -1, "fail unless this is the current version (0: none)")
	group.AddCommand(put, &cobra.Command{
		Use: "list [PREFIX]", Short: "List secrets, without their values", Example: "  claviger secret list db/", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				r, err := whole(func(token string) (*pb.ListSecretsResponse, error) {
					return c.ListSecrets(ctx, &pb.ListSecretsRequest{Prefix: strings.Join(args, ""), PageToken: token})
				})
				if err != nil {
					return err
				}
				return a.print(cmd.OutOrStdout(), r, "KEY VERSION UPDATED", func(row func(...any)) {
					for _, s := range r.GetSecrets() {
						row(s.GetKey(), s.GetVersion(), when(s.GetUpdatedAt()))
					}
				})
			})
		},
	}, &cobra.Command{
		Use: "delete KEY", Short: "Delete a secret", Example: "  claviger secret delete db/orders", Args: exactArgs("KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				_, err := c.DeleteSecret(ctx, &pb.DeleteSecretRequest{Key: args[0]})
				return err
			})
		},
	}, &cobra.Command{
		Use: "forget RESOURCE", Short: "Have a key that vanished from its Vault made anew; what the one before encrypted is lost",
		Long: "Have the next request for a resource make a new key in its Vault, although there was one (catalog entries with create_bytes).\n" +
			"A broker does not do that by itself: a Vault restored from an old snapshot has lost the keys that are newer, and a new key opens no disk.\n" +
			"Restore the key in Vault if you can. What was encrypted with the one before is lost otherwise.",
		Example: "  claviger secret forget disks/vm-1", Args: exactArgs("RESOURCE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				_, err := c.ForgetKey(ctx, &pb.ForgetKeyRequest{Resource: args[0]})
				return err
			})
		},
	})
	return group
}

func unrevokeCommand(a *adminFlags) *cobra.Command {
	return &cobra.Command{
		Use: "unrevoke KIND VALUE", Short: "Take a revocation back", Long: "Take a revocation back.\n\n" + revocationKinds, Example: "  claviger unrevoke chip 4d2a…", Args: exactArgs("KIND", "VALUE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				_, err := c.Unrevoke(ctx, &pb.UnrevokeRequest{Kind: args[0], Value: args[1]})
				return err
			})
		},
	}
}

func revocationsCommand(a *adminFlags) *cobra.Command {
	return &cobra.Command{
		Use: "revocations", Short: "List what is revoked", Example: "  claviger revocations", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				r, err := whole(func(token string) (*pb.ListRevocationsResponse, error) {
					return c.ListRevocations(ctx, &pb.ListRevocationsRequest{PageToken: token})
				})
				if err != nil {
					return err
				}
				return a.print(cmd.OutOrStdout(), r, "KIND VALUE SINCE BY REASON", func(row func(...any)) {
					for _, x := range r.GetRevocations() {
						row(x.GetKind(), x.GetValue(), when(x.GetRevokedAt()), x.GetRevokedBy(), dash(x.GetReason()))
					}
				})
			})
		},
	}
}

// readYAML reads a file into v, strictly; used for reference sets in policy eval.
func readYAML(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := strictyaml.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
