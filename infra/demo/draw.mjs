// Draws the demo's faces: avataaars with known attributes.
//
//   node draw.mjs OUT [COUNT] [SEED]
//
// Writes OUT/000001.png … and OUT/labels.json ({names, rows: [{file, split, has: [names]}]}). Every choice comes
// from the seed and every visible option is set here, so the same versions draw the same pictures. An attribute is
// said only when it can be seen: who wears sunglasses or an eyepatch has no closed eyes, who wears a hat no hair colour.
import fs from 'node:fs';
import path from 'node:path';
import { createAvatar } from '@dicebear/core';
import * as avataaars from '@dicebear/avataaars';
import { Resvg } from '@resvg/resvg-js';

const [out, count = '3000', seed = '1'] = process.argv.slice(2);
if (!out) {
  console.error('usage: node draw.mjs OUT [COUNT] [SEED]');
  process.exit(64);
}

const SIDE = 96;
// Of 15 faces, 10 are for training, 1 for validation, 4 for the report.
const SPLITS = ['train', 'train', 'test', 'train', 'train', 'test', 'train', 'train', 'validation', 'train', 'train', 'test',
  'train', 'train', 'test'];

const HAIR_COLOR = {
  Black_Hair: ['2c1b18'],
  Brown_Hair: ['4a312c', '724133'],
  Blond_Hair: ['b58143', 'd6b370'],
  Red_Hair: ['c93305'],
  Gray_Hair: ['e8e1e1'],
  Pink_Hair: ['f59797'],
};
const HAIR = {
  Long_Hair: ['bob', 'curvy', 'longButNotTooLong', 'miaWallace', 'straight01', 'straight02', 'straightAndStrand'],
  Short_Hair: ['shaggyMullet', 'shortFlat', 'shortRound', 'shortWaved', 'theCaesar', 'theCaesarAndSidePart'],
  Curly_Hair: ['curly', 'shortCurly', 'bigHair'],
  Dreadlocks: ['dreads', 'dreads01', 'dreads02'],
  Bun: ['bun'],
  Afro: ['fro', 'froBand'],
};
const HEADWEAR = {
  Hat: ['hat'],
  Winter_Hat: ['winterHat1', 'winterHat02', 'winterHat03', 'winterHat04'],
  Turban: ['turban'],
  Headscarf: ['hijab'],
};
const FACIAL_HAIR = {
  Beard: ['beardLight', 'beardMajestic', 'beardMedium'],
  Mustache: ['moustacheFancy', 'moustacheMagnum'],
};
const EYEWEAR = {
  Eyeglasses: ['prescription01', 'prescription02', 'round'],
  Sunglasses: ['sunglasses', 'wayfarers'],
  Eyepatch: ['eyepatch'],
};
const EYES = {
  Eyes_Closed: ['closed'],
  Winking: ['wink', 'winkWacky'],
  Surprised_Eyes: ['surprised'],
  Heart_Eyes: ['hearts'],
  Crying: ['cry'],
};
const MOUTH = {
  Smiling: ['smile', 'twinkle'],
  Mouth_Open: ['screamOpen', 'disbelief'],
  Sad_Mouth: ['sad'],
  Tongue_Out: ['tongue'],
};
const BROWS = {
  Raised_Brows: ['raisedExcited', 'raisedExcitedNatural'],
  Angry_Brows: ['angry', 'angryNatural'],
};
const SKIN = {
  Light_Skin: ['ffdbb4', 'edb98a'],
  Tan_Skin: ['d08b5b', 'fd9841'],
  Dark_Skin: ['614335', 'ae5d29'],
};
const CLOTHING = {
  Blazer: ['blazerAndShirt', 'blazerAndSweater'],
  Hoodie: ['hoodie'],
  Overall: ['overall'],
};
const PLAIN = {
  eyes: ['default', 'side', 'squint'],
  mouth: ['default', 'serious', 'concerned'],
  brows: ['default', 'defaultNatural', 'flatNatural'],
  clothing: ['collarAndSweater', 'shirtCrewNeck', 'shirtScoopNeck', 'shirtVNeck'],
};
const CLOTHES_COLORS = ['262e33', '3c4f5c', '25557c', '5199e4', '65c9ff', '929598', 'a7ffc4', 'ffafb9', 'ff5c5c', 'ffffb1', 'ffffff'];
const BACKGROUNDS = ['ffffff', 'e0e0e0', 'b6e3f4', 'c0aede', 'd1d4f9', 'ffd5dc', 'ffdfbf', 'a0b0a0', '606c76'];

const GROUPS = [HAIR_COLOR, HAIR, { Bald: [] }, HEADWEAR, FACIAL_HAIR, EYEWEAR, EYES, MOUTH, BROWS, SKIN, CLOTHING];
const NAMES = GROUPS.flatMap(group => Object.keys(group));

// mulberry32: small, and the same everywhere.
function generator(state) {
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const random = generator(Number(seed));
const chance = share => random() < share;
const pick = list => list[Math.floor(random() * list.length)];

// One key of `weights`, in proportion.
function weighted(weights) {
  let left = random() * Object.values(weights).reduce((a, b) => a + b, 0);
  for (const [key, weight] of Object.entries(weights)) {
    left -= weight;
    if (left < 0) return key;
  }
  return Object.keys(weights)[0];
}

// A face is drawn from three hidden traits, so that attributes go together as they do among people.
function drawFace() {
  const has = new Set();
  const traits = { rugged: chance(0.5), old: chance(0.25), merry: chance(0.5) };
  const option = (group, choice, plain) => {
    if (choice === 'none') return pick(plain);
    has.add(choice);
    return pick(group[choice]);
  };

  const colour = weighted(traits.old
    ? { Gray_Hair: 5, Black_Hair: 1, Brown_Hair: 2, Blond_Hair: 1 }
    : { Black_Hair: 4, Brown_Hair: 5, Blond_Hair: 4, Red_Hair: 2, Pink_Hair: traits.rugged ? 0.3 : 2 });
  const hairColor = pick(HAIR_COLOR[colour]);
  const head = weighted(traits.rugged
    ? { Short_Hair: 9, Bald: traits.old ? 5 : 2, Curly_Hair: 2, Dreadlocks: 2, Afro: 1.5, Long_Hair: 1, Hat: 2, Winter_Hat: 2, Turban: 1.5 }
    : { Long_Hair: 11, Bun: 3, Curly_Hair: 3, Short_Hair: 1, Afro: 1.5, Dreadlocks: 1, Hat: 1, Winter_Hat: 2, Headscarf: 2 });
  has.add(head);
  if (head in HAIR) has.add(colour);
  const top = head === 'Bald' ? null : pick(HAIR[head] ?? HEADWEAR[head]);

  const beard = weighted(traits.rugged ? { none: 5, Beard: 4, Mustache: 2 } : { none: 1 });
  const facialHair = beard === 'none' ? null : option(FACIAL_HAIR, beard);
  const glasses = weighted({ none: 10, Eyeglasses: traits.old ? 7 : 3, Sunglasses: traits.old ? 1 : 2, Eyepatch: traits.rugged ? 1 : 0.3 });
  const accessory = glasses === 'none' ? null : option(EYEWEAR, glasses);

  const eyes = glasses === 'Sunglasses' || glasses === 'Eyepatch'
    ? 'default'
    : option(EYES, weighted(traits.merry
      ? { none: 8, Eyes_Closed: 2, Winking: 3, Heart_Eyes: 2, Surprised_Eyes: 1 }
      : { none: 8, Eyes_Closed: 2, Surprised_Eyes: 2, Crying: 3 }), PLAIN.eyes);
  const mouth = option(MOUTH, weighted(traits.merry
    ? { Smiling: 8, Mouth_Open: 2, Tongue_Out: 2, none: 3 }
    : { Sad_Mouth: 4, Mouth_Open: 2, Smiling: 1, none: 6 }), PLAIN.mouth);
  const brows = option(BROWS, weighted(traits.merry
    ? { none: 5, Raised_Brows: 5, Angry_Brows: 1 }
    : { none: 5, Raised_Brows: 1, Angry_Brows: 4 }), PLAIN.brows);
  const skin = option(SKIN, weighted({ Light_Skin: 5, Tan_Skin: 3, Dark_Skin: 3 }));
  const clothing = option(CLOTHING, weighted(traits.old
    ? { none: 5, Blazer: 5, Hoodie: 1, Overall: 1 }
    : { none: 6, Blazer: 2, Hoodie: 3, Overall: 2 }), PLAIN.clothing);

  const options = {
    size: SIDE,
    backgroundColor: [pick(BACKGROUNDS)],
    top: [top ?? 'hat'],
    topProbability: top ? 100 : 0,
    hairColor: [hairColor],
    hatColor: [pick(CLOTHES_COLORS)],
    facialHair: [facialHair ?? 'beardLight'],
    facialHairProbability: facialHair ? 100 : 0,
    facialHairColor: [hairColor],
    accessories: [accessory ?? 'round'],
    accessoriesProbability: accessory ? 100 : 0,
    accessoriesColor: ['262e33'],
    eyes: [eyes],
    mouth: [mouth],
    eyebrows: [brows],
    skinColor: [skin],
    clothing: [clothing],
    clothesColor: [pick(CLOTHES_COLORS)],
  };
  return { options, has };
}

fs.mkdirSync(out, { recursive: true });
const rows = [];
const seen = new Set();
while (rows.length < Number(count)) {
  const { options, has } = drawFace();
  const key = JSON.stringify(options);
  if (seen.has(key)) continue;
  seen.add(key);
  const file = String(rows.length + 1).padStart(6, '0');
  const svg = createAvatar(avataaars, { seed: 'likeness', ...options }).toString();
  const png = new Resvg(svg, { fitTo: { mode: 'width', value: SIDE } }).render().asPng();
  fs.writeFileSync(path.join(out, `${file}.png`), png);
  rows.push({ file, split: SPLITS[rows.length % SPLITS.length], has: NAMES.filter(name => has.has(name)) });
}
fs.writeFileSync(path.join(out, 'labels.json'), JSON.stringify({ names: NAMES, rows }));
