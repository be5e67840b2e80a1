package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/claviger/claviger/internal/cli"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

func holdersCommand(a *adminFlags) *cobra.Command {
	var behind bool
	c := &cobra.Command{
		Use: "holders RESOURCE", Short: "Say which running workloads hold which version of a secret",
		Long: `Say which watching workloads hold which version of a secret: what each last
acknowledged, what was sent and not acknowledged yet, and when the version that
it holds retires.`,
		Example: "  claviger holders db/orders\n  claviger holders db/orders --behind     # those not on the current version\n  claviger holders db/orders --output json",
		Args:    exactArgs("RESOURCE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, cl pb.AdminClient) error {
				r, err := whole(func(token string) (*pb.ListHoldersResponse, error) {
					return cl.ListHolders(ctx, &pb.ListHoldersRequest{Resource: args[0], PageToken: token})
				})
				if err != nil {
					return err
				}
				all := len(r.GetHolders())
				current := 0
				for _, h := range r.GetHolders() {
					if h.GetVersion() == r.GetCurrentVersion() {
						current++
					}
				}
				if behind {
					r.Holders = slices.DeleteFunc(r.Holders, func(h *pb.Holder) bool { return h.GetVersion() == r.GetCurrentVersion() })
				}
				slices.SortFunc(r.Holders, func(x, y *pb.Holder) int {
					return cmp.Or(cmp.Compare(x.GetVersion(), y.GetVersion()), cmp.Compare(x.GetSessionId(), y.GetSessionId()))
				})
				if a.output == "table" {
					cli.Fprintf(cmd.OutOrStdout(), "%s: %d of %d on version %s\n", args[0], current, all, dash(r.GetCurrentVersion()))
				}
				return a.print(cmd.OutOrStdout(), r, "SESSION VERSION SINCE PENDING RETIRES TYPE CHIP", func(row func(...any)) {
					for _, h := range r.GetHolders() {
						kind := h.GetEvidenceType()
						if h.GetSimulated() {
							kind += " (SIMULATED)"
						}
						row(h.GetSessionId(), dash(h.GetVersion()), when(h.GetAcknowledgedAt()), dash(h.GetPendingVersion()), when(h.GetRetiresAt()), kind, short(h.GetChipId()))
					}
				})
			})
		},
	}
	c.Flags().BoolVar(&behind, "behind", false, "only those that do not hold the current version")
	return c
}

func sessionsCommand(a *adminFlags) *cobra.Command {
	return &cobra.Command{
		Use: "sessions", Short: "List the workloads that watch for new versions", Example: "  claviger sessions\n  claviger sessions --output json", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				r, err := whole(func(token string) (*pb.ListSessionsResponse, error) {
					return c.ListSessions(ctx, &pb.ListSessionsRequest{PageToken: token})
				})
				if err != nil {
					return err
				}
				return a.print(cmd.OutOrStdout(), r, "SESSION TYPE MODEL CHIP ATTESTED EXPIRES LEASES RESOURCES", func(row func(...any)) {
					for _, s := range r.GetSessions() {
						model := s.GetHardwareModel()
						if s.GetSimulated() {
							model += " (SIMULATED)"
						}
						row(s.GetId(), s.GetEvidenceType(), model, short(s.GetChipId()), when(s.GetAttestedAt()), when(s.GetExpiresAt()), s.GetLeases(), s.GetResources())
					}
				})
			})
		},
	}
}

func notifyCommand(a *adminFlags) *cobra.Command {
	return &cobra.Command{
		Use: "notify RESOURCE", Short: "Say that a secret changed in its source, so that running workloads get it at once",
		Long: `Have the brokers look at a secret now, in place of at the next poll (sessions.poll).
For a hook after a rotation; without it workloads get the new version a moment later.`,
		Example: "  vault kv put secret/db/orders value=… && claviger notify db/orders", Args: exactArgs("RESOURCE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				_, err := c.Notify(ctx, &pb.NotifyRequest{Resource: args[0]})
				return err
			})
		},
	}
}

const revocationKinds = `KIND and VALUE:
  chip            CHIP_ID or PIID, hex
  measurement     hex
  workload        HOST_DATA, hex
  tcb             "{hardware model}/{TCB status}", as TDX/OutOfDate
  advisory        as INTEL-SA-00837
  policy          sha256:… of a bundle
  session         id of a watching session (claviger sessions)
  resource        path
  secret_version  resource@version`

func revokeCommand(a *adminFlags) *cobra.Command {
	var reason, since string
	var rotate, dry, force bool
	c := &cobra.Command{
		Use: "revoke KIND VALUE", Short: "Stop releases to or of something, on every replica within a second",
		Long: `Stop releases, end the sessions and revoke the leases that it concerns. When this
returns the revocation is durable; within a second it holds on every replica.

VALUE may be the beginning of a value, as tables print it ("4d2a9c…"), of what this
broker saw: in a release, a session, a reference set or the catalog. A value that
it never saw is refused, since most are typing errors; --force revokes it all the same.

It then prints the blast radius: which secrets went there, by this broker's audit
log (other brokers have logs of their own). With --rotate those that the catalog
calls rotatable get a new version in their source.

` + revocationKinds,
		Example: `  claviger revoke chip 4d2a… --reason 'stolen machine'
  claviger revoke measurement 5b3c… --rotate
  claviger revoke advisory INTEL-SA-00837 --dry-run --since 720h   # only the blast radius`,
		Args: exactArgs("KIND", "VALUE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := &pb.BlastRadiusRequest{Kind: args[0], Value: args[1], MustExist: !force}
			if since != "" {
				d, err := time.ParseDuration(since)
				if err != nil || d <= 0 {
					return fmt.Errorf("%w: --since is %q, want a duration like 24h", errUsage, since)
				}
				q.Since = timestamppb.New(time.Now().Add(-d))
			}
			if dry && rotate {
				return fmt.Errorf("%w: --dry-run and --rotate exclude each other", errUsage)
			}
			return a.call(cmd.Context(), func(ctx context.Context, cl pb.AdminClient) error {
				if !dry {
					done, err := cl.Revoke(ctx, &pb.RevokeRequest{Revocation: &pb.Revocation{Kind: args[0], Value: args[1], Reason: reason}, MustExist: !force})
					if err != nil {
						return answered("nothing was revoked", err)
					}
					// What is revoked already is found, seen or not.
					q.Value, q.MustExist = done.GetValue(), false
					if a.output == "table" {
						cli.Fprintf(cmd.OutOrStdout(), "revoked: %s %s\n", args[0], done.GetValue())
					}
				}
				r, err := whole(func(token string) (*pb.BlastRadiusResponse, error) {
					q.PageToken = token
					return cl.BlastRadius(ctx, q)
				})
				switch {
				case err != nil && dry:
					return answered("nothing was revoked (dry run)", err)
				case err != nil:
					return answered(fmt.Sprintf("%s %s is revoked, but what went there is not known", args[0], q.GetValue()), err)
				}
				if a.output == "table" {
					if dry {
						cli.Fprintf(cmd.OutOrStdout(), "not revoked (dry run): %s %s; watching sessions that it would end: %d\n", args[0], r.GetValue(), r.GetSessions())
					}
					cli.Fprintf(cmd.OutOrStdout(), "%d releases in %d entries of log %s\n", r.GetReleases(), r.GetEntries(), r.GetLogOrigin())
					if r.GetPruned() > 0 {
						cli.Fprintf(cmd.OutOrStdout(), "not counted: the first %d entries, whose content was pruned before they were indexed\n", r.GetPruned())
					}
				}
				err = a.print(cmd.OutOrStdout(), r, "RESOURCE VERSION RELEASES FIRST LAST ROTATABLE", func(row func(...any)) {
					for _, x := range r.GetExposures() {
						row(x.GetResource(), dash(x.GetVersion()), x.GetReleases(), when(x.GetFirst()), when(x.GetLast()), x.GetRotatable())
					}
				})
				if err != nil || !rotate {
					return err
				}
				return rotateExposed(ctx, cmd.ErrOrStderr(), cl, r.GetExposures())
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	c.Flags().StringVar(&since, "since", "", "blast radius of releases since then only, as 24h")
	c.Flags().BoolVar(&rotate, "rotate", false, "have the sources make new versions of what went there")
	c.Flags().BoolVar(&dry, "dry-run", false, "print what it would match, revoke nothing; viewers can do that")
	c.Flags().BoolVar(&force, "force", false, "revoke a value that this broker never saw; it must be whole")
	return c
}

// answered adds what it means to a broker's error, in place of gRPC's own words for it.
func answered(what string, err error) error {
	s := status.Convert(err)
	return status.Error(s.Code(), what+": "+s.Message())
}

// rotateExposed rotates each resource once, and says which it could not.
func rotateExposed(ctx context.Context, w io.Writer, cl pb.AdminClient, exposures []*pb.Exposure) error {
	done := map[string]bool{}
	var errs []error
	for _, x := range exposures {
		if done[x.GetResource()] {
			continue
		}
		done[x.GetResource()] = true
		if !x.GetRotatable() {
			errs = append(errs, fmt.Errorf("%s: not rotatable by its catalog entry: rotate it yourself", x.GetResource()))
			continue
		}
		r, err := cl.RotateSecret(ctx, &pb.RotateSecretRequest{Resource: x.GetResource()})
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", x.GetResource(), err))
			continue
		}
		cli.Fprintf(w, "rotated %s: version %s\n", x.GetResource(), r.GetVersion())
	}
	return errors.Join(errs...)
}

func tokenCommand(a *adminFlags) *cobra.Command {
	group := &cobra.Command{Use: "token", Short: "Keys of attestation result tokens (docs/tokens.md)"}
	var replace bool
	rotate := &cobra.Command{
		Use: "rotate", Short: "Make a new signing key",
		Long: `Make a new signing key. It is published for an hour before it signs, so that
every relying party has it by then; the broker does this by itself every
tokens.rotate_every. With --replace the present key is taken to have leaked: the
new one signs at once and all earlier ones are withdrawn.`,
		Example: "  claviger token rotate\n  claviger token rotate --replace", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd.Context(), func(ctx context.Context, c pb.AdminClient) error {
				r, err := c.RotateTokenKey(ctx, &pb.RotateTokenKeyRequest{Replace: replace})
				if err != nil {
					return err
				}
				cli.Fprintln(cmd.OutOrStdout(), "key", r.GetKeyId())
				return nil
			})
		},
	}
	rotate.Flags().BoolVar(&replace, "replace", false, "the present key leaked: withdraw all earlier keys")
	group.AddCommand(rotate)
	return group
}
