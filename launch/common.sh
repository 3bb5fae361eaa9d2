# Shared by the launchers. With --dry_run a command is printed and not run.
# shellcheck shell=bash
set -euo pipefail

DRY_RUN=0
COMMAND=()

die() {
  echo "${0##*/}: $*" >&2
  exit 2
}

# The comment at the head of the script.
usage() {
  sed -n '2,/^[^#]/ { s/^# \{0,1\}//p }' "$0"
}

# parse "NAMES" ARGUMENTS: --name=value sets the variable of that name; what follows -- is COMMAND.
parse() {
  local known=" $1 " _flag  # a name of its own: `name` is a flag
  shift
  while (($#)); do
    case $1 in
      --)
        shift
        COMMAND=("$@")
        return
        ;;
      --dry_run) DRY_RUN=1 ;;
      --help | -h)
        usage
        exit 0
        ;;
      --*=*)
        _flag=${1%%=*}
        _flag=${_flag#--}
        [[ $known == *" $_flag "* ]] || die "unknown flag --$_flag; expected one of:${known% }"
        printf -v "$_flag" '%s' "${1#*=}"
        ;;
      *) die "unexpected argument $1; expected --name=value, and the command after --" ;;
    esac
    shift
  done
}

# need NAMES: each of these variables must have a value.
need() {
  local _flag
  for _flag in "$@"; do
    [[ -n ${!_flag} ]] || die "--$_flag must be given"
  done
}

need_command() {
  ((${#COMMAND[@]})) || die "the command is missing: -- dsi-jax train --gin_file=..."
}

# The words as one shell command, for a remote shell and for a person.
quoted() {
  local word line=''
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    line+="$word "
  done
  printf '%s' "${line% }"
}

# Prints a command, and runs it unless --dry_run was given.
run() {
  echo "+ $(quoted "$@")" >&2
  ((DRY_RUN)) || "$@"
}
