// @ts-check
// A sign-in beside the chat has ended: tell the chat, and go.

import { tellTabs } from "./account.js";

tellTabs("signed in");
// Not every browser lets a window close itself after it was at the provider. Then the words of the page stand.
close();
