# Gives the cards of a Linux guest other addresses, and puts its own configuration back. Run by its agent, as root:
#   set MAC '10.2.0.5/24,..' 'gateway,..' 'dns,..' [MAC ..]      restore
# What it finds is kept in $kept before anything is changed, and put back from there byte for byte. Files of network managers that
# can have another one beside it are not touched at all: a file of ours goes before them.
set -u
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin:/usr/bin:/bin"
home=/var/lib/sockeye-guest
kept=$home/kept
nm=/etc/NetworkManager/system-connections
networkd=/etc/systemd/network
ifupdown=/etc/network/interfaces

say() { echo "$*"; }
fail() { echo "$1" >&2; exit "$2"; }
has() { command -v "$1" >/dev/null 2>&1; }
# Whatever a tool says goes to a log, of which the end is told when something fails.
quiet() { echo "+ $*" >>$home/log; "$@" >>$home/log 2>&1 </dev/null; }

card_of() {
  for path in /sys/class/net/*; do
    # What is made of cards (a bridge, a VLAN) has the address of one as well.
    ! grep -qs ^DEVTYPE= "$path/uevent" || continue
    [ "$(cat "$path/address" 2>/dev/null)" = "$1" ] && { echo "${path##*/}"; return 0; }
  done
  return 1
}

# Whether somebody who is to look after the cards is still on the way, in a guest that has just started.
on_the_way() {
  if has nmcli && [ "$(nmcli -t -g STARTUP general 2>/dev/null)" = starting ]; then return 0; fi
  has systemctl || return 1
  case "$(systemctl is-system-running 2>/dev/null)" in initializing | starting) ;; *) return 1 ;; esac
  for service in NetworkManager systemd-networkd networking; do
    case "$(systemctl is-enabled $service 2>/dev/null)/$(systemctl is-active $service 2>/dev/null)" in
      enabled*/inactive | enabled*/activating) return 0 ;;
    esac
  done
  return 1
}
# A minute at most: one that hangs must not keep the guest from its addresses.
settled() {
  n=0
  while [ $n -lt 60 ] && on_the_way; do
    n=$((n + 1))
    sleep 1
  done
}

# Who looks after a card: the first that says so.
manager_of() {
  if has nmcli && [ "$(nmcli -t -g RUNNING general 2>/dev/null)" = running ]; then
    case "$(nmcli -t -g GENERAL.STATE device show "$1" 2>/dev/null)" in
      '' | 10 | 10\ * | unmanaged*) ;;
      *) echo NetworkManager; return ;;
    esac
  fi
  if has networkctl && networkctl list --no-legend --no-pager "$1" 2>/dev/null | grep -qwv unmanaged; then
    if [ -e /run/systemd/netif/state ]; then echo systemd-networkd; return; fi
  fi
  if has ifup && [ -f $ifupdown ]; then echo ifupdown; return; fi
  echo none
}

# Names with what is not a number or letter would not do in a file's name.
slug() { echo "$1" | tr -d ':'; }

# ---- keeping and putting back

keep() {
  [ -d $kept ] && return 0
  rm -rf $home/new
  mkdir -p -m 0700 $home $home/new || fail "$home cannot be made" 5
  for file in $ifupdown $ifupdown.d/* /etc/resolv.conf; do
    [ -f "$file" ] && [ ! -L "$file" ] || continue
    mkdir -p "$home/new${file%/*}" && cp -p "$file" "$home/new$file" || fail "$file cannot be kept" 5
  done
  sync
  mv $home/new $kept || fail "what was found cannot be kept" 5
  sync
}

# Puts $1 in the place of $2 as a whole. What is a mount, as resolv.conf can be, is written instead.
put() {
  mv "$1" "$2" 2>>$home/log || { cat "$1" >"$2" && rm -f "$1"; } || fail "$2 cannot be written" 5
}

put_back() {
  rm -f $networkd/00-sockeye-*.network $nm/sockeye-*.nmconnection
  [ -d $kept ] || return 0
  find $kept -type f | while read -r from; do
    file=${from#$kept}
    cmp -s "$from" "$file" && continue
    cp -p "$from" "$file.sockeye" || fail "$file cannot be put back" 5
    put "$file.sockeye" "$file"
  done || exit 5
}

# ---- each manager's own file

list() { echo "$1" | tr ',' ' '; }
of_family() { case "$2" in *:*) [ "$1" = 6 ] ;; *) [ "$1" = 4 ] ;; esac; }
first_of() { # family list
  for candidate in $(list "$2"); do of_family "$1" "$candidate" && { echo "$candidate"; return; }; done
}

networkd_file() { # card mac addresses gateways dns
  mkdir -p $networkd
  {
    echo "# By Sockeye, for this site; gone again at home."
    printf '[Match]\nMACAddress=%s\nType=ether\n[Network]\n' "$2"
    for one in $(list "$3"); do echo "Address=$one"; done
    for one in $(list "$4"); do echo "Gateway=$one"; done
    for one in $(list "$5"); do echo "DNS=$one"; done
  } >$networkd/00-sockeye-"$(slug "$2")".network && chmod 0644 $networkd/00-sockeye-"$(slug "$2")".network
}

nm_file() { # card mac addresses gateways dns
  mkdir -p $nm
  file=$nm/sockeye-$(slug "$2").nmconnection
  rm -f "$file"
  (
    umask 077
    {
      echo "# By Sockeye, for this site; gone again at home."
      printf '[connection]\nid=sockeye-%s\nuuid=%s\ntype=ethernet\nautoconnect-priority=999\n' "$(slug "$2")" "$(uuid "$2")"
      printf '[ethernet]\nmac-address=%s\n' "$2"
      for family in 4 6; do
        n=0 servers='' gate=$(first_of $family "$4")
        lines=$(for one in $(list "$3"); do
          of_family $family "$one" || continue
          n=$((n + 1))
          echo "address$n=$one${gate:+,$gate}"
          gate=''
        done)
        for one in $(list "$5"); do of_family $family "$one" && servers="$servers$one;"; done
        echo "[ipv$family]"
        if [ -n "$lines" ]; then
          printf 'method=manual\n%s\n' "$lines"
          [ -z "$servers" ] || echo "dns=$servers"
        elif [ $family = 4 ]; then echo method=disabled
        else echo method=link-local
        fi
      done
    } >"$file"
  ) || fail "$file cannot be written" 5
}
# The same for the same card, always.
uuid() { echo "50c4e7e0-5ea1-4000-8000-$(slug "$1")"; }

# Takes the stanzas of a card out of a file of ifupdown.
without() { # card < file
  awk -v card="$1" '
    /^[ \t]*(iface|mapping|auto|allow-[a-z]+|no-auto-down|no-scripts|source|source-directory|rename|template)[ \t]/ { skip = ($1 == "iface" && $2 == card) }
    !skip { print }
  '
}

ifupdown_file() { # card mac addresses gateways dns
  for file in $ifupdown $ifupdown.d/*; do
    [ -f "$file" ] && [ ! -L "$file" ] || continue
    cp -p "$file" "$file.sockeye" && without "$1" <"$file" >"$file.sockeye" || fail "$file cannot be written" 5
    put "$file.sockeye" "$file"
  done
  {
    echo
    echo "# By Sockeye, for this site; gone again at home."
    grep -qsE "^[[:space:]]*(auto|allow-hotplug)[[:space:]](.*[[:space:]])?$1([[:space:]]|\$)" $ifupdown $ifupdown.d/* || echo "auto $1"
    four=$(first_of 4 "$4") six=$(first_of 6 "$4") servers=$(list "$5")
    for one in $(list "$3"); do
      if of_family 4 "$one"; then family=inet gate=$four four=''; else family=inet6 gate=$six six=''; fi
      printf 'iface %s %s static\n    address %s\n' "$1" $family "$one"
      [ -z "$gate" ] || echo "    gateway $gate"
      [ -z "$servers" ] || echo "    dns-nameservers $servers"
      servers=''
    done
  } >>$ifupdown || fail "$ifupdown cannot be written" 5
}

# Where nobody else writes resolv.conf.
resolvers() { # dns
  [ -n "$1" ] && [ ! -L /etc/resolv.conf ] && [ -f /etc/resolv.conf ] || return 0
  cp -p /etc/resolv.conf /etc/resolv.conf.sockeye || return 0
  { grep -v '^nameserver' /etc/resolv.conf; for one in $(list "$1"); do echo "nameserver $one"; done; } >/etc/resolv.conf.sockeye
  put /etc/resolv.conf.sockeye /etc/resolv.conf
}

# ---- having it done

bare() { # card addresses gateways
  quiet ip address flush dev "$1"
  quiet ip link set "$1" up
  for one in $(list "$2"); do quiet ip address add "$one" dev "$1"; done
  for one in $(list "$3"); do
    if of_family 6 "$one"; then six=-6; else six=-4; fi
    quiet ip $six route replace default via "$one" dev "$1"
  done
}

# Reads the manager's files anew for a card.
bring_up() { # card manager mac
  case "$2" in
    NetworkManager)
      quiet nmcli connection reload
      if [ -e "$nm/sockeye-$(slug "$3").nmconnection" ]; then
        quiet nmcli --wait 30 connection up uuid "$(uuid "$3")"
      else
        quiet nmcli --wait 30 device connect "$1"
      fi ;;
    systemd-networkd)
      quiet networkctl reload && quiet networkctl reconfigure "$1"
      for wait in /lib/systemd/systemd-networkd-wait-online /usr/lib/systemd/systemd-networkd-wait-online; do
        [ -x $wait ] && { quiet $wait --interface="$1" --timeout=20; break; }
      done ;;
    ifupdown) quiet ip address flush dev "$1"; quiet ifup --force "$1" ;;
  esac
}

take_down() { # card manager
  [ "$2" = ifupdown ] && { quiet ifdown --force "$1"; quiet ip address flush dev "$1"; }
  return 0
}

addresses() { ip -o address show dev "$1" scope global 2>/dev/null | awk '{ print $4 }' | tr '\n' ' '; }
# Some leave the scope away that others print.
all_there() { # card addresses
  now=" $(addresses "$1")"
  for one in $(list "$2"); do case "$now" in *" $one "*) ;; *) return 1 ;; esac; done
}

trouble() { fail "$1; what its tools said: $(tail -c 1500 $home/log)" "$2"; }

each() { # function, then for each card of "$cards": function card manager mac addresses gateways dns
  while read -r card manager mac addresses gateways dns; do
    [ -n "$card" ] || continue
    [ "$addresses" = - ] && addresses=''
    [ "$gateways" = - ] && gateways=''
    [ "$dns" = - ] && dns=''
    "$@" "$card" "$manager" "$mac" "$addresses" "$gateways" "$dns" || return 1
  done <<END
$cards
END
}

write_one() {
  case "$2" in
    NetworkManager) nm_file "$1" "$3" "$4" "$5" "$6" ;;
    systemd-networkd) networkd_file "$1" "$3" "$4" "$5" "$6"; resolvers "$6" ;;
    ifupdown) ifupdown_file "$1" "$3" "$4" "$5" "$6"; resolvers "$6" ;;
    none) resolvers "$6" ;;
  esac
}
down_one() { take_down "$1" "$2"; }
up_one() { if [ "$2" = none ]; then bare "$1" "$4" "$5"; else bring_up "$1" "$2" "$3"; fi; return 0; }
back_one() { bring_up "$1" "$2" "$3"; return 0; }
see_one() {
  n=0
  until all_there "$1" "$4"; do
    n=$((n + 1))
    [ $n -le 20 ] || trouble "$1 ($3) has $(addresses "$1")and not $4" 6
    sleep 1
  done
  say "$1 ($3) has $(addresses "$1")by $2"
}

# The cards that had addresses of ours and are to have none now.
left_one() { case "$wanted" in *" $3 "*) ;; *) left="$left
$*" ;; esac; }

mkdir -p -m 0700 $home || fail "$home cannot be made" 5
: >$home/log
has ip || fail "there is no program ip" 4
what=$1
shift
settled
case "$what" in
  set)
    now='' wanted=' ' left=''
    while [ $# -ge 4 ]; do
      card=$(card_of "$1") || fail "it has no card $1" 3
      [ ! -e "/sys/class/net/$card/master" ] ||
        fail "$card ($1) is part of $(basename "$(readlink "/sys/class/net/$card/master")"); such a card is left alone" 3
      now="$now
$card $(manager_of "$card") $1 ${2:--} ${3:--} ${4:--}" wanted="$wanted$1 "
      shift 4
    done
    cards=$(cat $home/cards 2>/dev/null)
    each left_one
    keep
    cards="$left
$now"
    # Written down before anything is changed: whoever puts it back needs to know of both.
    echo "$cards" >$home/cards && sync
    each down_one
    put_back
    cards=$now
    each write_one
    sync
    cards=$left
    each back_one
    cards=$now
    each up_one
    each see_one
    echo "$cards" >$home/cards && sync
    ;;
  restore)
    [ -d $kept ] || { say "its configuration is its own"; exit 0; }
    cards=$(cat $home/cards 2>/dev/null)
    each down_one
    put_back
    sync
    each back_one
    rm -rf $kept $home/cards $home/new
    sync
    say "its own configuration is back"
    ;;
  *) fail "set or restore" 2 ;;
esac
